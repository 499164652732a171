"""A pad token that is EOS, or none at all: EOS is still learned by SFT, and scored by the reward model."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import SFTTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from align.data.encode import prompt_ids, whole_ids
from align.data.source import Split
from align.report.model_card import write_model_card
from align.report.report import Report
from align.roles.folder import SCORE, inspect
from align.roles.loading import load_frozen
from align.roles.modules import ScoreModule
from align.stages.rm.quality import score_ids
from align.stages.rm.spec import RMOptions
from align.stages.rm.stage import RM
from align.stages.sft import stage as sft_stage
from align.stages.sft.spec import SFTOptions
from align.stages.sft.stage import SFT

WORDS = "red kite harbour sailors ropes rain seven old quiet".split()
CPU = torch.device("cpu")


class Rows:
    """A Source of rows made here."""

    def __init__(self, train: list[dict], held_out: list[dict]) -> None:
        self.split = Split(train, held_out)

    def check(self, purpose: str) -> None: ...

    def load(self, purpose: str, seed: int) -> Split:
        return self.split


def demonstrations() -> list[dict]:
    """Answers of one to three words: that they end is what there is to learn."""
    pick = random.Random(0)
    return [
        {"prompt": f"say {i}:", "completion": "".join(f" {pick.choice(WORDS)}" for _ in range(1 + i % 3))}
        for i in range(32)
    ]


def pairs() -> list[dict]:
    """Unlike in length, so that rows are padded; the chosen answer is the shorter."""
    return [
        {**row, "chosen": row["completion"], "rejected": row["completion"] + " rain" * 4} for row in demonstrations()
    ]


@pytest.fixture(params=["pad is eos", "no pad"])
def model(request, tmp_path, base) -> str:
    """The tiny model, its tokenizer without a pad token of its own."""
    folder = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token if request.param == "pad is eos" else None
    tokenizer.save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(base)
    loaded.config.pad_token_id = loaded.config.eos_token_id if request.param == "pad is eos" else None
    loaded.generation_config.pad_token_id = loaded.config.pad_token_id
    loaded.save_pretrained(folder)
    found = AutoTokenizer.from_pretrained(folder)
    assert found.pad_token_id == (found.eos_token_id if request.param == "pad is eos" else None)
    return str(folder)


def trained(stage, model: str, folder: Path) -> Path:
    """Checks and runs a stage as the pipeline does; the folder that it leaves."""
    folder.mkdir()
    stage.check({"path": model})
    with Report().stage("stage", folder) as report:
        stage.run({"path": model}, folder, report)
    return folder


def chance_of_eos(folder: str | Path, rows: list[dict]) -> float:
    """Mean probability of EOS behind a whole answer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([prompt_ids(row["prompt"] + row["completion"], tokenizer)])
            found.append(float(model(input_ids=ids).logits[0, -1].softmax(-1)[tokenizer.eos_token_id]))
    return sum(found) / len(found)


@pytest.mark.slow
def test_sft_learns_eos_and_not_the_padding(model, tmp_path, monkeypatch):
    seen = []

    class Watched(SFTTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append({name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)})
            return super().compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft_stage, "SFTTrainer", Watched)
    rows = demonstrations()
    options = SFTOptions(learning_rate=5e-3, batch_size=8, max_length=32, args={"max_steps": 12})
    out = trained(SFT(options, Rows(rows, []), None, 0, CPU, torch.float32), model, tmp_path / "sft")

    eos = AutoTokenizer.from_pretrained(model).eos_token_id
    padded = 0
    for batch in seen:
        for ids_N, labels_N, mask_N in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(mask_N.sum())
            assert ids_N[length - 1] == eos and labels_N[length - 1] == eos
            assert (labels_N[length:] == -100).all()
            padded += len(ids_N) - length
    assert len(seen) == 12 and padded > 0
    assert chance_of_eos(model, rows) < 0.05
    assert chance_of_eos(out, rows) > 0.3


@pytest.mark.slow
def test_the_reward_model_scores_at_eos_where_the_trainer_does(model, tmp_path):
    rows = pairs()
    options = RMOptions(learning_rate=2e-3, batch_size=8, max_length=32, norm_samples=0, args={"max_steps": 12})
    stage = RM(options, Rows(rows[:24], rows[24:]), None, 8, 0, CPU, torch.float32)
    out = trained(stage, model, tmp_path / "rm")

    tokenizer = AutoTokenizer.from_pretrained(out)
    scorer = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert scorer.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id

    chosen, rejected = (whole_ids(rows, side, tokenizer) for side in ("chosen", "rejected"))
    assert all(ids[-1] == tokenizer.eos_token_id for ids in chosen + rejected)
    ours_B = score_ids(ScoreModule(scorer), chosen + rejected, CPU)
    # What RewardTrainer trains on: its collator's batch, padded by its id, pooled by transformers' own head.
    collate = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
    batch = collate([{"chosen_ids": c, "rejected_ids": r} for c, r in zip(chosen, rejected, strict=True)])
    with torch.no_grad():
        theirs_B = scorer(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    # float32, two paddings of the same rows
    torch.testing.assert_close(ours_B, theirs_B, atol=1e-4, rtol=1e-4)

    without_B = score_ids(ScoreModule(scorer), [ids[:-1] for ids in chosen + rejected], CPU)
    assert (ours_B - without_B).abs().min() > 1e-3
    assert (ours_B[: len(rows)] > ours_B[len(rows) :]).float().mean() > 0.9


@pytest.mark.slow
def test_an_adapters_card_loads_a_model_that_scores_alike(model, lora, tmp_path):
    """Also where the base takes EOS for padding: float32, alone and padded on either side."""
    rows = pairs()
    options = RMOptions(learning_rate=2e-3, batch_size=8, max_length=32, norm_samples=0, args={"max_steps": 3})
    adapter = dataclasses.replace(lora, task_type="SEQ_CLS")
    out = trained(RM(options, Rows(rows[:24], rows[24:]), adapter, 8, 0, CPU, torch.float32), model, tmp_path / "rm")
    write_model_card(out, {**json.loads((out / "card.json").read_text()), "stage": "rm"})
    scope: dict = {}
    exec((out / "README.md").read_text().partition("```python\n")[2].partition("```")[0], scope)
    tokenizer, theirs = scope["tokenizer"], scope["model"].eval()
    ids = whole_ids(rows[:6], "rejected", tokenizer) + whole_ids(rows[:6], "chosen", tokenizer)
    ours_B = score_ids(ScoreModule(load_frozen(inspect(out, "path", SCORE))), ids, CPU)
    with torch.no_grad():
        alone_B = torch.cat([theirs(input_ids=torch.tensor([one])).logits[0] for one in ids])
        torch.testing.assert_close(alone_B, ours_B, atol=1e-5, rtol=1e-5)
        for side in ("left", "right"):
            batch = tokenizer.pad({"input_ids": ids}, padding_side=side, return_tensors="pt")
            padded_B = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
            torch.testing.assert_close(padded_B, ours_B, atol=1e-5, rtol=1e-5)
