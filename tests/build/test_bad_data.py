"""Data that no stage can learn from: what is wrong, in which file and row, before or as soon as it can be known."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from command_line import LEARNED, PPO, RM, SFT, answer, refused, stand_in, write_data, write_rows

DPO = "stages=dpo actor.path={base}"
KTO = "stages=kto actor.path={base} data@kto.data=unpaired"
RANKED = "stages=rm model={base} data@rm.data=rankings"
MIXTURE = (
    "stages=sft model={base} data@sft.data=mixture +data@sft.data.parts.a=prompt_completion "
    "sft.data.parts.a.path=demos.jsonl +data@sft.data.parts.b=prompt_completion sft.data.parts.b.path=pairs.jsonl"
)
EARLY = [
    ("no path", "stages=sft model={base}", ["sft.data.path is not set", "data.path=FILE"]),
    ("no file", f"{SFT} sft.data.path=demo.jsonl", ["sft.data.path=demo.jsonl", "no such file"]),
    ("folder", f"{SFT} sft.data.path=plain", ["plain is a folder", ".jsonl"]),
    ("other suffix", f"{SFT} sft.data.path=my_rewards.py", ["my_rewards.py is no table"]),
    ("empty file", f"{SFT} sft.data.path=empty.jsonl", ["empty.jsonl", "no rows"]),
    ("broken line", f"{SFT} sft.data.path=broken.jsonl", ["broken.jsonl line 2", "not json", "one object a line"]),
    (
        "no column",
        f"{SFT} sft.data.path=nocolumn.jsonl",
        ["nocolumn.jsonl line 1", "'prompt'", "question, answer", "data.columns.prompt=COLUMN"],
    ),
    ("no column of a pair", f"{RM} rm.data.path=demos.jsonl", ["demos.jsonl line 1", "'chosen'", "completion"]),
    (
        "columns of another format",
        f"{KTO} kto.data.path=pairs.jsonl",
        ["'completion'", "use data@kto.data=preferences, which has these columns"],
    ),
    ("no column of a prompt", f"{PPO} ppo.data.path=nocolumn.jsonl", ["nocolumn.jsonl line 1", "'prompt'"]),
    ("a column that nobody reads", f"{RM} rm.data.columns.label=topic", ["rm.data.columns.label=topic", "share"]),
    ("wrong type", f"{SFT} sft.data.path=typed.jsonl", ["typed.jsonl line 2", "number 7", "a string"]),
    ("pairs for prompts", f"{SFT} data@sft.data=prompts", ["sft.data.format=prompts", "prompt_completion"]),
    ("format that is none", f"{SFT} sft.data.format=csv", ["sft.data.format=csv", "prompt_completion"]),
    ("share", f"{PPO} ppo.data.eval_share=1", ["ppo.data.eval_share=1", "0.05"]),
    ("one file twice", f"{SFT} sft.data.eval_path=demos.jsonl", ["sft.data.eval_path=demos.jsonl", "sft.data.path"]),
    ("a row alone", f"{RM} rm.data.path=single.jsonl", ["rm.data.path", "rm.data.eval_share=0"]),
    ("share of noise", "experiment=tiny rm.data.noise=2", ["rm.data.noise=2", "from 0 to 1"]),
    ("no pairs", "experiment=tiny rm.data.pairs=0", ["rm.data.pairs=0", "1 or more"]),
    ("all pairs alike", f"{RM} rm.data.path=alike.jsonl", ["no pair is left", "alike", "rm.data.path"]),
    ("all pairs alike for dpo", f"{DPO} dpo.data.path=alike.jsonl", ["no pair is left", "alike", "dpo.data.path"]),
    (
        "weights of nothing",
        f"{MIXTURE} sft.data.weights.a=0 sft.data.weights.b=0",
        ["sft.data.weights sum to nothing", "above 0"],
    ),
    (
        "no column of a task",
        MIXTURE.replace("pairs", "nocolumn"),
        ["use sft.data.parts.b.columns.prompt=COLUMN", "than +data@sft.data.parts.b=prompt_completion"],
    ),
    ("an empty task", MIXTURE.replace("pairs", "empty"), ["sft.data.parts.b.path=empty.jsonl", "no rows"]),
    (
        "a label that is none",
        f"{KTO} kto.data.path=graded.jsonl",
        ["graded.jsonl line 3", "2 in 'label'", "true (or 1)"],
    ),
    (
        "one label",
        f"{KTO} kto.data.path=good.jsonl",
        ["every completion is labelled true", "both labels in kto.data.path"],
    ),
    (
        "an item that is none",
        f"{RANKED} rm.data.path=unknown.jsonl",
        ["line 1 has the ranking [0, 1, 5]", "0 to 2, best first"],
    ),
    (
        "an item twice",
        f"{RANKED} rm.data.path=twice.jsonl",
        ["line 1 has the ranking [0, 1, 1]", "does not name each of its 3 completions once"],
    ),
    (
        "one answer to choose among",
        "stages=evaluate actor.path={base} sft.data.path=yes.jsonl evaluate.shots=[0] evaluate.metrics=[accuracy]",
        ["evaluate.metrics: accuracy", "every one is ' yes'", "use exact_match or f1"],
    ),
    (
        "no column that the reward function takes",
        f"{PPO} reward.fn=my_rewards.right",
        ["reward.fn: reward 'right' (my_rewards.py:", "'solution'", "columns of the data set: topic"],
    ),
    (
        "no column that the judge's function takes",
        "stages=preferences model={base} preferences.data.path=prompts.jsonl reward@preferences.judge=sum "
        "+reward@preferences.judge.terms.right=fn "
        "preferences.judge.terms.right.fn=my_rewards.right",
        ["preferences.judge.terms.right.fn: reward 'right'", "'solution'"],
    ),
]
LATE = [
    ("all prompts fill it", f"{SFT} sft.max_length=2", ["sft.max_length=2", "no example is left", "sft.data.path"]),
    ("all pairs too long", f"{RM} rm.max_length=2", ["rm.max_length=2", "no pair is left", "longer"]),
    (
        "all held-out pairs alike",
        f"{RM} rm.data.eval_path=alike.jsonl",
        ["rm.data.eval_path=alike.jsonl", "12 of 12 held-out rows left out: 12 with completions alike", "eval_share"],
    ),
    ("all prompts too long", f"{PPO} ppo.max_prompt_tokens=1", ["ppo.max_prompt_tokens=1", "no prompt is left"]),
    ("scores too few", f"{PPO} reward.fn=my_rewards.short", ["'short'", "my_rewards.py", "1 score for 8"]),
    ("score that is no number", f"{PPO} reward.fn=my_rewards.nan", ["'nan'", "my_rewards.py", "row 0", "None"]),
    (
        "reward that raises",
        f"{PPO} reward.fn=my_rewards.raises",
        ["'raises'", "KeyError", "colour", "my_rewards.py:14"],
    ),
    (
        "reward server that is not there",
        f"{LEARNED} reward=http reward.url=http://127.0.0.1:9/score reward.retries=0",
        ["'http' (http://127.0.0.1:9/score) stayed away", "use the url of a server"],
    ),
    (
        "fewer tokens than a row",
        "stages=pretrain data@pretrain.data=prompt_completion pretrain.data.path=demos.jsonl pretrain.max_length=500",
        ["pretrain.max_length=500", "tokens"],
    ),
]

REFUSED = [  # by a chat template, of which rows
    ("stages=sft model={base} data@sft.data=conversational sft.data.path=talks.jsonl", "messages"),
    ("stages=rm model={base} rm.data.path=talks.jsonl", "pair"),
    ("stages=dpo actor.path={base} dpo.data.path=talks.jsonl", "pair"),
    ("stages=kto actor.path={base} data@kto.data=unpaired kto.data.path=talks.jsonl", "row"),
    ("stages=preferences model={base} preferences.data.path=talks.jsonl reward@preferences.judge=kind_words", "prompt"),
    (PPO.replace("prompts.jsonl", "talks.jsonl"), "prompt"),
]


@pytest.fixture(scope="module")
def strict(base, tmp_path_factory) -> str:
    """The base with the chat template of a model that takes no system message, and turns that alternate alone."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("strict") / "base")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "<|{{ m.role }}|> {{ m.content }}{% endfor %}"
    )
    return str(folder)


def write_talks(file: Path, opening: list[dict]) -> None:
    """Rows that serve every stage, all good but for the last, which begins with `opening`."""
    rows = []
    for number in range(8):
        prompt = [*(opening if number == 7 else []), {"role": "user", "content": f"say {number}"}]
        good, bad = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))
        row = {"prompt": prompt, "messages": prompt + good, "chosen": good, "rejected": bad, "completion": good}
        rows.append({**row, "label": number % 2 == 0})
    write_rows(file, rows)


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_data(tmp_path)
    (tmp_path / "plain").mkdir()
    numbers = range(12)
    write_rows(tmp_path / "graded.jsonl", [{"prompt": f"{i}", "completion": " a", "label": i} for i in numbers])
    write_rows(tmp_path / "good.jsonl", [{"prompt": f"{i}", "completion": " a", "label": True} for i in numbers])
    write_rows(tmp_path / "yes.jsonl", [{"prompt": f"{i}", "completion": " yes"} for i in numbers])
    for name, ranking in (("unknown", [0, 1, 5]), ("twice", [0, 1, 1])):
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": "a", "completions": ["b", "c", "d"], "ranking": ranking}])
    (tmp_path / "single.jsonl").write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n')
    yield from stand_in(tmp_path, monkeypatch)


@pytest.mark.parametrize("name, arguments, words", EARLY, ids=[name for name, *_ in EARLY])
def test_broken_data_is_refused_before_a_model_loads(here, capsys, base, name, arguments, words):
    said = refused(capsys, arguments.format(base=base), words)
    assert said.out == ""
    assert not (here / "runs").exists()


@pytest.mark.parametrize("name, arguments, words", LATE, ids=[name for name, *_ in LATE])
def test_what_only_a_run_can_know_ends_it_in_the_same_manner(here, capsys, base, name, arguments, words):
    refused(capsys, f"{arguments} ppo.batch_size=8".format(base=base), words)
    assert [path.name for path in (here / "runs" / "run").iterdir() if path.name != "latest"]
    assert not list((here / "runs").rglob("summary.json"))


@pytest.mark.parametrize("opening", ["system", "assistant"])
@pytest.mark.parametrize("arguments, kind", REFUSED, ids=[arguments.split()[0] for arguments, _ in REFUSED])
def test_a_chat_template_that_refuses_a_role_is_told_with_the_row(here, capsys, strict, arguments, kind, opening):
    write_talks(here / "talks.jsonl", [{"role": opening, "content": "Be brief."}])
    why = {"system": "no system role", "assistant": "roles must alternate"}[opening]
    noun = "pair" if kind == "pair" else "row"
    words = [
        f"refuses messages of {opening}, user",
        f"({why}), in {noun} ",
        f"message 1 is the {opening}'s 'Be brief.'",
        "use messages",
    ]
    refused(capsys, arguments.format(base=strict), words)
    assert not list((here / "runs").rglob("*.safetensors"))


@pytest.mark.parametrize("later", ["rm", "ppo", "dpo"])
def test_messages_of_a_later_stage_are_refused_before_the_first_trains(here, capsys, strict, later):
    write_talks(here / "talks.jsonl", [{"role": "system", "content": "Be brief."}])
    words = "reward=fn reward.fn=my_rewards.brevity data@sft.data=prompt_completion sft.data.path=demos.jsonl"
    arguments = f"stages=[sft,{later}] model={strict} {words} {later}.data.path=talks.jsonl evaluate.judge=null"
    said = refused(capsys, arguments, ["refuses messages of system, user", f"of those loaded for {later}.data"])
    assert said.out == "" and not (here / "runs").exists()


def test_held_out_answers_may_have_one_label(here, capsys, base):
    rows = [{"prompt": f"{i}", "completion": " a", "label": i % 2 == 0} for i in range(12)]
    write_rows(here / "both.jsonl", rows)
    words = "kto.data.path=both.jsonl kto.data.eval_path=good.jsonl +kto.args.max_steps=1 evaluate.judge=null"
    said = answer(capsys, f"{KTO} {words}".format(base=base))
    assert said.status == 0, said.err
    card = json.loads((here / "runs" / "run" / "latest" / "kto" / "card.json").read_text())
    assert "eval_loss" in card


def test_fewer_prompts_than_a_batch_go_round_and_it_is_said(here, capsys, base):
    said = answer(capsys, f"{PPO} ppo.steps=1 ppo.batch_size=16 evaluate.samples=2 evaluate.show=0".format(base=base))
    assert said.status == 0, said.err
    assert "11 prompts for batches of 16: each step goes round them more than once" in said.out


@pytest.mark.parametrize("key, arguments", [("sft", SFT), ("rm", RM), ("dpo", f"{DPO} dpo.data.path=pairs.jsonl")])
def test_a_held_out_row_that_is_too_long_does_not_end_the_run(here, capsys, base, key, arguments):
    long = "a red kite flies over the harbour " * 20
    pairs = [{"prompt": f"say {i}", "chosen": f" {i}", "rejected": " no"} for i in range(7)]
    first = min(range(7), key=lambda i: hashlib.sha256(f"say {i}".encode()).digest())  # the one that is held out
    rows = [{"prompt": f"say {i}", "completion": f" {i}"} for i in range(7)]
    for name, some, side in (("demos", rows, "completion"), ("pairs", pairs, "chosen")):
        some[first][side] = long
        write_rows(here / f"{name}.jsonl", some)
    words = f"{key}.data.eval_share=0.01 {key}.max_length=30 +{key}.args.max_steps=1 evaluate.judge=null"
    if key == "sft":
        words += " sft.too_long=leave_out"
    said = answer(capsys, f"{arguments} {words}".format(base=base))
    assert said.status == 0, said.err
    assert f"1 of 1 held-out rows left out: 1 longer than {key}.max_length=30 (the longest, row 1, has" in said.out
    card = json.loads((here / "runs" / "run" / "latest" / key / "card.json").read_text())
    assert card["left_out"] == {"held-out rows": {"too_long": 1}}
