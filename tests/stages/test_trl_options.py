"""TRL's own options by name, each of which does what it says."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from command_line import refused, stand_in
from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig

import align
from align.errors import AlignError
from align.stages.sft.learned_turns import check_template
from align.stages.training import REPORTED

BASE = "stages=[sft] data@sft.data=prompt_completion sft.data.path=demos.jsonl sft.batch_size=4 sft.learning_rate=1e-2"

FORMATS = {"sft": "prompt_completion", "rm": "preferences", "dpo": "preferences", "kto": "unpaired"}
DPO_FIGURES = ("eval_rewards/accuracies", "eval_rewards/margins")


@pytest.fixture
def here(tmp_path, monkeypatch):
    for folder in stand_in(tmp_path, monkeypatch):
        rows = [{"prompt": f"{word} {n}", "completion": f" {word} kite"} for n in range(8) for word in ("red", "rain")]
        (folder / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = (("user", "prompt"), ("assistant", "completion"))
        turns = [{"messages": [{"role": role, "content": row[column]} for role, column in said]} for row in rows]
        (folder / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
        pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " no"} for row in rows]
        marked = [{**row, "label": n % 2 == 0} for n, row in enumerate(rows)]
        for name, found in (("sft", rows), ("rm", pairs), ("dpo", pairs), ("kto", marked)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        yield folder


def losses(here: Path, base: str, words: str = "", name: str = "run") -> list[float]:
    """Of two steps at seed 0."""
    align.run([f"model={base}", *BASE.split(), f"name={name}", "+sft.args.max_steps=2", *words.split()])
    lines = (here / "runs" / name / "latest" / "sft" / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_packing_fills_rows(here, base):
    steps = {}
    for name, words in (("apart", ""), ("packed", "+sft.args.packing=true +sft.args.padding_free=true")):
        whole = f"name={name} sft.data.eval_share=0 sft.max_length=32 {words}"
        align.run([f"model={base}", *BASE.split(), *whole.split()])
        lines = (here / "runs" / name / "latest" / "sft" / "metrics.jsonl").read_text().splitlines()
        steps[name] = sum("loss" in json.loads(line) for line in lines)
    assert steps["packed"] < steps["apart"] == 4


def test_the_prompt_counts_where_it_is_asked_to_and_noise_changes_the_loss(here, base):
    plain = losses(here, base)
    assert losses(here, base, "+sft.args.completion_only_loss=false", "all")[0] != pytest.approx(plain[0], abs=1e-3)
    assert losses(here, base, "+sft.args.neftune_noise_alpha=50", "noise")[0] != pytest.approx(plain[0], abs=1e-4)
    assert losses(here, base, "", "again") == plain


def test_the_assistant_s_turns_alone_are_learned(here, base):
    turns = "data@sft.data=conversational sft.data.path=turns.jsonl"
    (here / "chat.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    )
    template = f"+sft.args.chat_template_path={here / 'chat.jinja'}"
    whole = losses(here, base, f"{turns} {template}", "whole")
    alone = losses(here, base, f"{turns} {template} +sft.args.assistant_only_loss=true", "alone")
    assert alone[0] != pytest.approx(whole[0], abs=1e-3)


CUT = "data@sft.data=conversational sft.data.path=cut.jsonl sft.data.eval_share=0 +sft.args.assistant_only_loss=true"


def test_rows_whose_learned_turns_are_cut_off_are_left_out_and_counted(here, base, capsys):
    """Three of eight. The template marks the words of a turn but not its end; the run warns of that."""
    (here / "chat.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{{ eos_token }}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    )
    words = ["red kite " * (40 if n < 3 else 1) for n in range(8)]
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in words]
    (here / "cut.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    template = f"+sft.args.chat_template_path={here / 'chat.jinja'}"
    losses(here, base, f"{CUT} {template} sft.max_length=32")
    out = " ".join(capsys.readouterr().out.split())
    assert "3 of 8 rows left out: 3 without a token to learn within sft.max_length=32" in out
    assert "5 rows, 0 held out" in out
    assert "would not learn to stop" in out
    refused(
        capsys, f"model={base} {BASE} {CUT} {template} sft.max_length=2", ["sft.max_length=2: no example is left of 8"]
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("assistant_only_loss=true", ["the rows of sft.data are strings", "data@sft.data=conversational"]),
        ("assistant_only_loss=true data@sft.data=text", ["the rows of sft.data are strings"]),
        (
            "assistant_only_loss=true data@sft.data=conversational sft.data.path=turns.jsonl",
            ["the chat template of", "chat_template_path=FILE.jinja", "{% generation %}"],
        ),
        (
            "assistant_only_loss=true data@sft.data=conversational sft.data.path=asked.jsonl",
            ["has no turn of the assistant; it begins 'why "],
        ),
        ("completion_only_loss=true data@sft.data=text", ["are text, with no completion", "prompt_completion instead"]),
        (
            "completion_only_loss=true data@sft.data=conversational sft.data.path=turns.jsonl",
            ["are messages, with no completion", "+sft.args.assistant_only_loss=true instead"],
        ),
    ],
)
def test_what_nobody_could_learn_is_told_before_the_model_loads(here, base, capsys, monkeypatch, words, said):
    asked = [{"messages": [{"role": "user", "content": f"why {n}?"}]} for n in range(8)]
    (here / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    if "=text" in words:
        (here / "demos.jsonl").write_text('{"text": "a red kite"}\n{"text": "rain"}\n' * 4)
    monkeypatch.setattr("align.stages.sft.stage.start", lambda *args, **options: pytest.fail("a model loads"))
    refused(capsys, f"model={base} {BASE} +sft.args.{words}", said)


def test_a_template_that_trl_can_patch_is_taken(tmp_path, tokenizer):
    from trl.chat_template_utils import qwen3_chat_template

    known = copy.deepcopy(tokenizer)
    known.chat_template = qwen3_chat_template
    known.save_pretrained(tmp_path)
    check_template({"assistant_only_loss": True}, str(tmp_path), "sft")
    known.chat_template += " "
    known.save_pretrained(tmp_path)
    with pytest.raises(AlignError, match="does not mark"):
        check_template({"assistant_only_loss": True}, str(tmp_path), "sft")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "stages=[rm] rm.path={base} rm.data.path=rm.jsonl +rm.args.metric_for_best_model=eval_acuracy",
            ["rm.args.metric_", "eval_accuracy"],
        ),
        (
            "stages=[dpo] actor.path={base} dpo.data.path=dpo.jsonl +dpo.args.metric_for_best_model=accuracy",
            ["dpo.args.metric_for_best_model=accuracy", "eval_rewards/accuracies"],
        ),
        (
            "stages=[dpo] actor.path={base} dpo.data.path=dpo.jsonl dpo.data.eval_share=0 "
            "+dpo.args.eval_strategy=epoch",
            ["dpo.args.eval_strategy=epoch: no rows are held out"],
        ),
    ],
)
def test_a_figure_that_nobody_reports_is_told_before_anything_trains(here, base, capsys, words, said):
    refused(capsys, words.format(base=base), said)


@pytest.mark.parametrize(
    ("stage", "config"), [("sft", SFTConfig), ("rm", RewardConfig), ("dpo", DPOConfig), ("kto", KTOConfig)]
)
def test_a_trainer_reports_the_figures_by_which_the_best_may_be_chosen(here, base, stage, config):
    """One run each, by its last figure; all others stand beside it in metrics.jsonl, but for those of experts."""
    figures = [f"eval_{name}" for name in REPORTED[config] if name != "aux_loss"]
    paths = {"sft": f"model={base}", "rm": f"rm.path={base}"}.get(stage, f"actor.path={base}")
    words = f"stages=[{stage}] {paths} {stage}.data.path={stage}.jsonl data@{stage}.data={FORMATS[stage]} "
    words += f"{stage}.data.eval_share=0.3 +{stage}.args.max_steps=2 +{stage}.args.metric_for_best_model={figures[-1]} "
    words += f"+{stage}.args.eval_strategy=steps +{stage}.args.save_strategy=steps "
    align.run([*words.split(), f"+{stage}.args.load_best_model_at_end=true"])
    folder = here / "runs" / "run" / "latest" / stage
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = [row for row in rows if "eval_loss" in row]
    assert len(told) >= 2 and set(figures) <= set(told[0])
    assert (folder / "trainer" / "checkpoint-1").is_dir()  # the first evaluation was saved


@pytest.mark.parametrize("stage", ["rm", "dpo"])
def test_figures_on_the_way_are_of_pairs_in_whatever_batches(here, base, stage):
    """The last batch is smaller: the figures are those of pairs one by one, and those of the card (float32)."""
    seen = {}
    for size in (1, 2):  # of three
        path = f"rm.path={base}" if stage == "rm" else f"actor.path={base}"
        words = f"stages=[{stage}] {path} {stage}.data.path={stage}.jsonl {stage}.data.eval_share=0.3 "
        words += f"+{stage}.args.max_steps=2 +{stage}.args.eval_strategy=steps {stage}.learning_rate=1e-2 "
        align.run([*words.split(), f"+{stage}.args.per_device_eval_batch_size={size}"])
        folder = here / "runs" / "run" / "latest" / stage
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        seen[size] = [row for row in rows if "eval_loss" in row][-1]
        card = json.loads((folder / "card.json").read_text())
    accuracy, margin = {"rm": ("eval_accuracy", "eval_margin"), "dpo": DPO_FIGURES}[stage]
    for name in (accuracy, margin, "eval_loss"):
        assert seen[2][name] == pytest.approx(seen[1][name], abs=1e-5)
    assert card["eval_accuracy"] == pytest.approx(seen[2][accuracy], abs=1e-5)
    assert card["eval_margin"] == pytest.approx(seen[2][margin], abs=1e-5)


def test_early_stopping_keeps_the_best_epoch(here, base):
    """A rate at which the loss soon rises: training ends before its epochs do, and the best is what is left."""
    words = "sft.early_stopping=1 sft.epochs=30 sft.learning_rate=0.3 sft.data.eval_share=0.2"
    align.run([f"model={base}", *BASE.split(), *words.split()])
    stage = here / "runs" / "run" / "latest" / "sft"
    found = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    seen = [row["eval_loss"] for row in found if "eval_loss" in row]
    assert 2 <= len(seen) < 30
    assert json.loads((stage / "card.json").read_text())["eval_loss"] == pytest.approx(min(seen), abs=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sft.early_stopping=0", ["sft.early_stopping=0: use a whole number from 1"]),
        ("sft.early_stopping=2 sft.data.eval_share=0", ["sft.early_stopping wants one", "no held-out rows"]),
        ("+sft.args.padding_free=true", ["sft.args.padding_free=true", "+sft.args.packing=true"]),
        ("+sft.args.pack=true", ["sft.args.pack", "nearest: packing"]),
        ("+sft.args.packing=no", ["sft.args.packing=no: use true or false"]),
        ("+sft.args.completion_only_loss=maybe", ["sft.args.completion_only_loss=maybe: use true or false"]),
        ("+sft.args.max_steps=2.5", ["sft.args.max_steps=2.5: use a whole number"]),
        ("+sft.args.max_steps=null", ["sft.args.max_steps=null: use a whole number"]),
        (
            "+sft.args.load_best_model_at_end=true",
            [
                "load_best_model_at_end=true: the best",
                "use +sft.args.eval_strategy=epoch +sft.args.save_strategy=epoch",
            ],
        ),
        (
            "+sft.args.load_best_model_at_end=true +sft.args.eval_strategy=steps +sft.args.save_strategy=epoch",
            ["eval_strategy=steps and save_strategy=epoch", "use +sft.args.eval_strategy=steps +sft.args.save_"],
        ),
        ("sft.early_stopping=2 +sft.args.eval_strategy=no", ["sft.early_stopping=2: the best"]),
        (
            "sft.early_stopping=2 +sft.args.metric_for_best_model=eval_acuracy",
            ["metric_for_best_model=eval_acuracy", "nearest: eval_mean_token_accuracy"],
        ),
        ("+sft.args.eval_strategy=epoch sft.data.eval_share=0", ["eval_strategy=epoch: no rows are held out"]),
        ("+sft.args.save_strategy=best", ["save_strategy=best", "use +sft.args.metric_for_best_model=eval_loss"]),
        (
            "+sft.args.load_best_model_at_end=true +sft.args.eval_strategy=steps +sft.args.save_strategy=steps "
            "+sft.args.eval_steps=2 +sft.args.save_steps=3",
            ["sft.args: trl.SFTConfig refuses them", "round multiple of the evaluation steps, but found 3"],
        ),
        ("+sft.args.weight_decay=true", ["sft.args.weight_decay=true: use a number"]),
    ],
)
def test_what_cannot_be_is_refused(here, base, capsys, words, said):
    refused(capsys, f"model={base} {BASE} {words}", said)
