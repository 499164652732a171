"""Figures and training do not depend on how rows are cut into batches, nor do packed rows see each other."""

import json

import pytest
import torch
from command_line import refused, stand_in, write_rows
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import align
from align.stages.held_out import reduced

PATHS = {"sft": "model", "rm": "rm.path", "dpo": "actor.path", "kto": "actor.path"}
FORMATS = {"sft": "prompt_completion", "rm": "preferences", "dpo": "preferences", "kto": "unpaired"}
WORDS = "a red kite flies over the quiet harbour while seven old sailors".split()


@pytest.fixture
def here(tmp_path, monkeypatch):
    for folder in stand_in(tmp_path, monkeypatch):
        texts = [" " + " ".join(WORDS[: 1 + n % 9]) for n in range(13)]
        rows = [{"prompt": f"say {n}", "completion": text} for n, text in enumerate(texts)]
        pairs = [{"prompt": f"say {n}", "chosen": text, "rejected": " no"} for n, text in enumerate(texts)]
        marked = [{**row, "label": n % 2 == 0} for n, row in enumerate(rows)]
        for name, found in (("sft", rows), ("rm", pairs), ("dpo", pairs), ("kto", marked)):
            write_rows(folder / f"{name}.jsonl", found)
            write_rows(folder / f"{name}_held_out.jsonl", found[4:])
        yield folder


def run(here, stage: str, base: str, words: str):
    """The stage's folder."""
    own = f"stages=[{stage}] {PATHS[stage]}={base} {stage}.data.path={stage}.jsonl data@{stage}.data={FORMATS[stage]}"
    align.run(f"{own} {words}".split())
    return (here / "runs" / "run" / "latest" / stage).resolve()


@pytest.mark.parametrize("stage", PATHS)
def test_accumulation_trains_as_one_large_batch(here, base, stage):
    """13 rows by 8, then by 2 x 4: the last step has micro-batches of 2, 2 and 1. float32, two steps of AdamW."""
    words = f"{stage}.batch_size=8 {stage}.data.eval_share=0 {stage}.learning_rate=1e-3"
    words += " kto.loss=apo_zero_unpaired" if stage == "kto" else ""
    one = load_file(run(here, stage, base, words) / "adapter_model.safetensors")
    cut = run(here, stage, base, f"{words} +{stage}.args.gradient_accumulation_steps=4")
    lines = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in line for line in lines) == 2
    other = load_file(cut / "adapter_model.safetensors")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5


@pytest.mark.parametrize("stage", PATHS)
def test_held_out_figures_are_the_same_in_whatever_batches(here, base, stage):
    """Nine rows of unlike lengths, one by one and by four; kto's KL is of a batch, so that its loss without it."""
    words = f"{stage}.data.eval_path={stage}_held_out.jsonl {stage}.batch_size=8 +{stage}.args.max_steps=1 "
    words += f"+{stage}.args.eval_strategy=steps " + ("kto.loss=apo_zero_unpaired " if stage == "kto" else "")
    seen = []
    for size in (1, 4):
        folder = run(here, stage, base, f"{words} +{stage}.args.per_device_eval_batch_size={size}")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found = next(line for line in lines if "eval_loss" in line)
        speed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
        seen.append({name: value for name, value in found.items() if name not in speed})
    assert len(seen[0]) > 5 and seen[0] == pytest.approx(seen[1], abs=2e-5)


def test_the_held_out_loss_is_nats_a_token(here, base):
    """The card's, against plain transformers row by row; float32."""
    folder = run(here, "sft", base, "sft.data.eval_path=sft_held_out.jsonl sft.batch_size=4 sft.learning_rate=1e-3")
    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    found = loss_of(model, here / "sft_held_out.jsonl", folder)
    assert json.loads((folder / "card.json").read_text())["eval_loss"] == pytest.approx(found, abs=1e-5)


def test_means_least_and_most_of_batches():
    assert reduced("loss", [(1.0, 3.0), (5.0, 1.0)]) == 2.0
    assert reduced("loss", [(1.0, 3.0), (float("nan"), 0.0)]) == 1.0
    assert (reduced("min_reward", [(1.0, 3.0), (5.0, 1.0)]), reduced("max_reward", [(1.0, 3.0), (5.0, 1.0)])) == (1, 5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sft.args.packing=true sft.args.packing_strategy=wrapped", ["packing_strategy=wrapped", "=bfd_split"]),
        ("sft.args.eval_packing=true", ["eval_packing=true", "see each other", "+sft.args.packing=true"]),
        (
            "sft.batch_size=10 sft.args.gradient_accumulation_steps=4",
            ["gradient_accumulation_steps=4", "sft.batch_size=10", "use sft.batch_size=8"],
        ),
        ("sft.args.gradient_accumulation_steps=0", ["gradient_accumulation_steps=0: use a whole number from 1"]),
    ],
)
def test_batches_that_cannot_be_are_refused(here, base, capsys, words, said):
    refused(capsys, f"stages=[sft] model={base} sft.data.path=sft.jsonl {words}", said)


@pytest.mark.parametrize("name", ["lora", "prefix", "p_tuning", "adalora", "none"])
def test_the_folder_gives_the_figure_of_the_best_epoch(here, base, name):
    """A rate at which the loss soon rises. The folder is read by PEFT or transformers alone."""
    rate = {"none": 0.03, "prefix": 1}.get(name, 0.3)
    words = f"peft@sft.peft={name} sft.early_stopping=1 sft.epochs=6 sft.batch_size=4 sft.learning_rate={rate} "
    words += "sft.data.eval_path=sft_held_out.jsonl "
    words += "sft.peft.num_virtual_tokens=4 " if name in ("prefix", "p_tuning") else ""
    folder = run(here, "sft", base, words)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = min(line["eval_loss"] for line in lines if "eval_loss" in line)
    assert json.loads((folder / "card.json").read_text())["eval_loss"] == pytest.approx(best, abs=1e-5)
    cls = AutoModelForCausalLM if name == "none" else AutoPeftModelForCausalLM
    assert loss_of(cls.from_pretrained(folder).eval(), here / "sft_held_out.jsonl", folder) == pytest.approx(
        best, abs=1e-4
    )


@torch.no_grad()
def loss_of(model, file, folder) -> float:
    """Nats a token over a file's completions, row by row."""
    tokenizer, total, tokens = AutoTokenizer.from_pretrained(folder), 0.0, 0
    for row in map(json.loads, file.read_text().splitlines()):
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id])
        logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0][-len(ids) :]
        total -= float(logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[len(prompt) - 1 :].sum())
        tokens += len(ids) - len(prompt)
    return total / tokens
