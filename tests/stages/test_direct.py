"""dpo and kto: the reference is the policy at step 0 for every method, and does not move."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import refused, stand_in
from methods import SETTINGS
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

import align
from align.roles.start import start
from align.stages.direct.stage import DPO_METHOD, Direct, frozen_copy

SMALL = ["experiment=tiny", "debug=default", "evaluate.judge=null", "actor.learning_rate=1e-2"]
DPO = [*SMALL, "stages=[dpo]", "dpo.data.pairs=96", "dpo.batch_size=32"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from stand_in(tmp_path, monkeypatch)


def rows(stage: Path) -> list[dict]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "name", ["none", "lora", "dora", "adalora", "ia3", "prefix", "p_tuning", "trainable_tokens", "houlsby"]
)
def test_the_first_loss_is_that_of_two_equal_policies(here, base_of, name):
    """log 2, and no margin: 1e-5 in float32, sums of some forty log-probabilities on each side."""
    settings = [f"actor.peft.{setting}" for setting in SETTINGS.get(name, ())]
    align.run(
        [*DPO, f"actor.path={base_of(name)}", f"peft@actor.peft={name}", "dpo.learning_rate=lora:1e-3", *settings]
    )
    dpo = here / "runs" / "tiny" / "latest" / "dpo"
    steps = [row for row in rows(dpo) if "loss" in row]
    assert len(steps) == 3 and steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-5) != steps[-1]["rewards/margins"]
    if name != "adalora":  # whose loss has its orthogonality in it
        assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert 0 <= json.loads((dpo / "card.json").read_text())["eval_accuracy"] <= 1


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_it_goes_on_with_the_fine_tuned_adapter_and_ppo_goes_on_with_it(here, base, stage):
    words = [
        *SMALL,
        f"{stage}.data.pairs=32",
        f"{stage}.batch_size=8",
        f"stages=[sft,{stage},ppo]",
        f"model={base}",
        "rollout=hf",
        "rollout.max_new_tokens=4",
    ]
    align.run([*words, "reward=fn", "reward.fn=kind_words.kind_words", "zero@actor.zero=none"])
    run = here / "runs" / "tiny" / "latest"
    card = json.loads((run / stage / "card.json").read_text())
    assert card["start"].startswith(f"goes on with the adapter of {(run / 'sft').resolve()}")
    first = next(row["loss"] for row in rows(run / stage) if "loss" in row)
    assert first == pytest.approx({"dpo": math.log(2), "kto": 0.5}[stage], abs=1e-5)
    started = json.loads((run / "ppo" / "card.json").read_text())["inputs"]["actor"]
    assert started == str((run / stage).resolve())
    policies = json.loads((run / "summary.json").read_text())["policies"]
    assert list(policies) == ["base", "sft", stage, "ppo"]
    model = AutoPeftModelForCausalLM.from_pretrained(run / stage)
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_reference_of_other_token_ids_is_refused(here, base, tokenizer, capsys, method):
    other = Path(shutil.copytree(base, here / "other"))
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<new>"])
    more.save_pretrained(other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": len(more)}))
    words = f"{' '.join(SMALL)} stages=[{method}] actor.path={base} reference.path={other}"
    refused(capsys, words, ["reference.path: its tokenizer", "is not the policy's"])
    assert not (here / "runs").exists()


def test_a_named_reference_is_the_one_that_counts(here, base, untied_base):
    """Another model than the actor: the first loss is not log 2."""
    align.run([*DPO, f"actor.path={base}", f"reference.path={untied_base}"])
    losses = [row["loss"] for row in rows(here / "runs" / "tiny" / "latest" / "dpo") if "loss" in row]
    assert abs(losses[0] - math.log(2)) > 1e-3


@pytest.mark.parametrize(("pairs", "warnings"), [(8, ["warning: only 8 held-out pairs"]), (100, [])])
def test_an_accuracy_on_few_pairs_is_warned_of(pairs, warnings):
    said = []
    trainer = SimpleNamespace(evaluate=lambda: {"eval_rewards/accuracies": 0.75}, eval_dataset=range(pairs))
    stage = Direct(DPO_METHOD, None, None, None, None, 0, None, None)
    assert stage._judge(trainer, SimpleNamespace(say=said.append)) == {"eval_accuracy": 0.75}
    assert [line.partition(":")[0] + ":" + line.split(":")[1] for line in said[1:]] == warnings


def test_the_frozen_copy_shares_what_is_frozen_and_does_not_move(base, tmp_path):
    lora = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = start(
        base,
        key="actor",
        head="causal",
        peft=lora,
        adapter="auto",
        out=tmp_path,
        dtype=torch.float32,
        kinds=("causal",),
    ).model
    assert isinstance(model, PeftModel)
    ids = torch.arange(5, 25)[None]
    before = model(ids).logits
    reference = frozen_copy(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1)
    assert torch.equal(reference(ids).logits, before) and not torch.equal(model(ids).logits, before)
    assert not any(p.requires_grad for p in reference.parameters())
    theirs = {p.data_ptr() for p in model.parameters()}
    own = sum(p.numel() for p in reference.parameters() if p.data_ptr() not in theirs)
    assert own == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_all_weights_train_against_a_copy_of_all(base):
    model = AutoModelForCausalLM.from_pretrained(base).requires_grad_(True)
    theirs = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in theirs for p in frozen_copy(model).parameters())
