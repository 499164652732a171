"""Answers of a policy, sampled, judged, ranked, and learned from."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
from command_line import answer, refused, stand_in
from peft import AutoPeftModelForCausalLM

import align
from align.stages.preferences import stage as preferences

ASK = (
    "evaluate.judge=null rollout.max_new_tokens=40 stages=[preferences] preferences.data.path=prompts.jsonl "
    "preferences.max_prompt_tokens=32 reward@preferences.judge=fn preferences.judge.fn=judges.{judge} "
    "preferences.samples=16 rollout={rollout}"  # a random model ends an answer in six
)
LEARN = "data@dpo.data=sampled actor.learning_rate=1e-3 +dpo.args.max_steps=2 +best_of.args.max_steps=2"


@pytest.fixture
def here(tmp_path, monkeypatch):
    for folder in stand_in(tmp_path, monkeypatch):
        rows = [{"prompt": f"{word} {n}"} for n in range(6) for word in ("a red kite", "rain", "the quiet harbour")]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "judges.py").write_text(
            "import pathlib\n\n\n"
            "def shortest(prompts, completions, **_):\n    return [-len(c) for c in completions]\n\n\n"
            "def even(prompts, completions, **_):\n    return [1.0] * len(completions)\n\n\n"
            "asked, calls = [], []\n\n\n"
            "def tires(prompts, completions, **_):\n"
            "    calls.append(len(prompts))\n"
            "    if pathlib.Path('tired').exists() and len(calls) > 2:\n        raise KeyboardInterrupt\n"
            "    asked.extend(prompts)\n"
            "    return [-len(c) for c in completions]\n\n\n"
            "def counts(prompts, completions, log_extra, **_):\n"
            "    asked.extend(completions)\n"
            "    log_extra('length', [len(c) for c in completions])\n"
            "    return [-len(c) for c in completions]\n"
        )
        pairs = [{"prompt": row["prompt"], "chosen": " red", "rejected": " kite kite"} for row in rows]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        yield folder


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def ask(base: str, judge: str = "shortest", rollout: str = "hf", **more: str) -> list[str]:
    words = {word.partition("=")[0]: word for word in ASK.format(judge=judge, rollout=rollout).split()}
    words |= {key.replace("__", "."): f"{key.replace('__', '.')}={value}" for key, value in more.items()}
    return [f"model={base}", "name=ask", *words.values()]


def test_answers_are_ranked_and_learned_from(here, base):
    """best_of takes the best answer of each ranking, dpo the best and the worst, each from the policy before it."""
    align.run([*ask(base, stages="[preferences,best_of,dpo]"), *LEARN.split()])
    run = here / "runs" / "ask" / "latest"
    ranked = rows(run / "preferences" / "rankings.jsonl") + rows(run / "preferences" / "held_out.jsonl")
    assert all(row["scores"] == [-len(text) for text in row["completions"]] for row in ranked)
    assert all(len(set(row["completions"])) == len(row["completions"]) >= 2 for row in ranked)
    cards = {stage: json.loads((run / stage / "card.json").read_text()) for stage in ("preferences", "best_of", "dpo")}
    trained = rows(run / "preferences" / "rankings.jsonl")
    assert (
        cards["best_of"]["rows"] == cards["dpo"]["rows"] == cards["preferences"]["rankings"]["prompts"] == len(trained)
    )
    assert cards["dpo"]["inputs"]["actor"] == str((run / "best_of").resolve())
    assert cards["dpo"]["inputs"]["samples"] == str((run / "preferences").resolve())
    assert "samples" in cards["dpo"]["hashes"]
    AutoPeftModelForCausalLM.from_pretrained(run / "best_of")


def test_an_answer_that_did_not_end_is_not_judged_and_what_that_costs_is_said(here, base, capsys):
    said = answer(capsys, " ".join(ask(base, judge="counts", rollout__max_new_tokens="10")))
    folder = here / "runs" / "ask" / "latest" / "preferences"
    judged = rows(folder / "completions.jsonl")[1:]
    ended = [end for row in judged for end in row["finished"]]
    assert len(sys.modules["judges"].asked) == sum(ended) < len(ended)
    for row in judged:
        lengths = row["extra"].get("length", [None] * 16)  # nothing is said where none ended
        told = zip(row["completions"], row["finished"], row["scores"], lengths, strict=True)
        assert all(
            (score, length) == ((-len(text), len(text)) if end else (None, None)) for text, end, score, length in told
        )
    left_out = json.loads((folder / "card.json").read_text())["rankings"]["left_out"]
    fewer = [row for row in judged if row["file"] == "rankings.jsonl" and sum(row["finished"]) < 2]
    assert left_out["cut"] == len(fewer) > 0
    words = f"{sum(left_out.values())} of 17 prompts left out: {len(fewer)} have fewer than two that ended"
    assert words in " ".join(said.out.split()) and "use rollout.max_new_tokens=20, or more" in said.out


def test_a_policy_that_never_ends_is_warned_of_on_the_way(here, base, capsys, monkeypatch):
    monkeypatch.setattr(preferences, "PROMPTS_AT_ONCE", 8)
    words = " ".join(ask(base, rollout__max_new_tokens="1", preferences__samples="2"))
    said = refused(capsys, words, ["no prompt has two completions to rank", "use rollout.max_new_tokens=2, or more"])
    assert "warning: none of 16 completions ended within rollout.max_new_tokens=1" in " ".join(said.out.split())


def test_the_same_answers_come_again(here, base):
    found = []
    for name in ("one", "two"):
        align.run([*ask(base), f"name={name}"])
        found.append((here / "runs" / name / "latest" / "preferences" / "rankings.jsonl").read_text())
    assert found[0] == found[1]


def test_a_run_that_was_stopped_keeps_what_was_judged_and_goes_on_to_the_same_end(here, base, monkeypatch, capsys):
    monkeypatch.setattr(preferences, "JUDGED_AT_ONCE", 4)
    words = ask(base, judge="tires")
    (here / "tired").touch()
    with pytest.raises(KeyboardInterrupt):
        align.run(words)
    latest = here / "runs" / "ask" / "latest"
    kept = rows(latest / "preferences" / "completions.jsonl")
    said = " ".join(capsys.readouterr().out.split())
    assert "stopped; completions of 8 prompts are judged and kept" in said and "preferences.resume=" in said
    assert len(kept) == 1 + 8 and all(len(row["completions"]) == 16 for row in kept[1:])
    (here / "tired").unlink()
    with (latest / "preferences" / "completions.jsonl").open("a") as file:
        file.write('{"policy": "actor", "file"')  # as a killed process leaves it
    resume = "preferences.resume=runs/ask/latest/preferences"
    refused(capsys, " ".join([*words, resume, "preferences.samples=15"]), ["preferences.samples=16", "resume"])
    refused(capsys, " ".join([*words, resume, "preferences.judge.fn=judges.even"]), ["judge.fn=judges.tires", "resume"])
    for folder, why in (
        ("runs", "there is no completions.jsonl in it\n  use the"),
        ("away", "there is no such folder\n"),
    ):
        answered = refused(capsys, " ".join([*words, f"preferences.resume={folder}"]), [f"/{folder}: {why}"])
        assert "FileNotFoundError" not in answered.err
    asked = sys.modules["judges"].asked
    asked.clear()
    align.run([*words, resume])
    again = len(asked)
    went_on = latest.resolve() / "preferences"
    asked.clear()
    align.run(words)
    assert latest.resolve() / "preferences" != went_on
    in_kept = sum(sum(row["finished"]) for row in kept[1:])
    assert again == len(asked) - in_kept > 0 < in_kept  # those that were judged are not asked about again
    with (here / "judges.py").open("a") as file:
        file.write("# another rule\n")
    refused(capsys, " ".join([*words, resume]), ["were made with judges.py=", "leave preferences.resume out"])
    for file in ("rankings.jsonl", "held_out.jsonl"):
        assert (went_on / file).read_text() == (latest / "preferences" / file).read_text()
    cards = [json.loads((folder / "card.json").read_text()) for folder in (went_on, latest / "preferences")]
    assert cards[0]["policies"]["actor"] == pytest.approx(cards[1]["policies"]["actor"])


def test_what_was_answered_by_another_policy_is_not_gone_on_with(here, base, untied_base, capsys):
    align.run(ask(base))
    words = ask(untied_base, preferences__resume="runs/ask/latest/preferences")
    refused(capsys, " ".join(words), ["weights of actor", "leave preferences.resume out"])


@pytest.mark.vllm
def test_policies_answer_against_each_other_by_vllm(here, base, untied_base):
    pytest.importorskip("vllm")
    align.run(ask(base, rollout="vllm", preferences__policies=f"[{base},{untied_base}]", preferences__samples="10"))
    folder = here / "runs" / "ask" / "latest" / "preferences"
    ranked = rows(folder / "rankings.jsonl")
    assert {name for row in ranked for name in row["policies"]} == {"policy_1", "policy_2"}
    figures = json.loads((folder / "card.json").read_text())["policies"]
    assert figures["policy_1"]["completions"] == figures["policy_2"]["completions"] == 10 * 18


def test_adapters_side_by_side_learn_from_answers_that_the_run_is_still_to_write(here, base):
    words = "best_of.parallel_adapters=2 +best_of.args.max_steps=2 preferences.data.eval_share=0.4"
    align.run([*ask(base, stages="[preferences,best_of]"), *words.split()])
    told = json.loads((here / "runs" / "ask" / "latest" / "best_of" / "card.json").read_text())
    assert [one["name"] for one in told["adapters"]] == ["adapter_0", "adapter_1"] and told["eval_loss"] > 0


def test_evaluation_asks_the_reward_model_about_pairs_that_the_run_itself_made(here, base):
    words = "stages=[preferences,rm,evaluate] data@rm.data=sampled ppo.data.path=prompts.jsonl ppo.data.eval_share=0.3"
    short = "preferences.data.eval_share=0.4 rm.args.max_steps=1 rm.norm_samples=0 evaluate.samples=2 evaluate.show=0"
    align.run([*ask(base), *words.split(), *short.split()])
    run = here / "runs" / "ask" / "latest"
    told = json.loads((run / "evaluate" / "card.json").read_text())
    assert told["inputs"]["samples"] == str((run / "preferences").resolve())
    assert told["reward_accuracy"] == json.loads((run / "rm" / "card.json").read_text())["eval_accuracy"]


def test_a_reward_model_of_the_run_judges_and_is_made_first(here, base):
    words = ask(base, stages="[rm,preferences]")
    words = [word for word in words if "judge" not in word]
    align.run([*words, "rm.data.path=pairs.jsonl", "+rm.args.max_steps=1", "rm.norm_samples=0", "evaluate.judge=null"])
    run = here / "runs" / "ask" / "latest"
    card = json.loads((run / "preferences" / "card.json").read_text())
    assert card["inputs"]["reward"] == str((run / "rm").resolve())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["preferences.samples=1"], ["preferences.samples=1", "2 or more"]),
        (["preferences.samples=0"], ["preferences.samples=0: use a whole number from 1"]),
        (["preferences.policies=nowhere"], ["preferences.policies", "nowhere"]),
        (["preferences.judge.fn=judges.none"], ["judges.none"]),
        (["stages=[dpo]", "data@dpo.data=sampled"], ["dpo.data.path is auto", "stages=[preferences,dpo]"]),
        (["stages=[sft]", "data@sft.data=sampled", "sft.data.path=."], ["there is no rankings.jsonl"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value,
)
def test_what_cannot_be_is_refused_before_a_model_loads(here, base, capsys, words, said):
    given = ask(base)
    if words[0].startswith("stages"):
        given = [word for word in given if "preferences" not in word]
    refused(capsys, " ".join([*given, *words]), said)


def test_policies_of_other_token_ids_are_refused(here, base, tokenizer, capsys):
    """All prompts are read, and all answers written, by one tokenizer."""
    other = Path(shutil.copytree(base, here / "other"))
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<new>"])
    more.save_pretrained(other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": len(more)}))
    words = ask(base, preferences__policies=f"[{base},{other}]")
    refused(capsys, " ".join(words), ["preferences.policies: its tokenizer", "is not the policy's"])


def test_a_judge_without_an_opinion_ends_the_stage_with_a_word(here, base, capsys):
    refused(
        capsys,
        " ".join(ask(base, judge="even", preferences__samples="64")),
        ["no prompt has two completions to rank", "have completions scored alike", "another preferences.judge"],
    )


def test_the_tiny_experiment_takes_its_pairs_from_the_policy(here, base, capsys):
    words = f"experiment=tiny_sampled debug=default stages=[sft,preferences,rm] model={base} preferences.prompts=16"
    said = answer(capsys, f"{words} evaluate.judge=null rollout.max_new_tokens=8")
    assert said.status in (0, 1)  # a random model answers nothing that the rule scores apart
    assert "no prompt has two completions" in said.err


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (
            "by_column preferences.judge.column=task +reward@preferences.judge.cases.default=fn "
            "preferences.judge.cases.default.fn=judges.even",
            ["preferences.judge.column=task", "no such column, only prompt"],
        ),
        ("http preferences.judge.url=nowhere", ["preferences.judge.url=nowhere is no URL"]),
    ],
)
def test_a_judge_is_looked_at_as_a_reward_is(here, base, capsys, judge, words):
    given = [word for word in ask(base) if "preferences.judge" not in word]
    refused(capsys, f"{' '.join(given)} reward@preferences.judge={judge}", words)
    assert not (here / "runs").exists()


def test_a_judge_that_is_away_is_told_before_anything_is_written(here, base, capsys):
    given = [word for word in ask(base) if "preferences.judge" not in word]
    judge = "reward@preferences.judge=http preferences.judge.url=http://127.0.0.1:9/score preferences.judge.retries=0"
    refused(capsys, f"{' '.join(given)} {judge}", ["'http' (http://127.0.0.1:9/score) stayed away for one try"])
