"""AdaLoRA prunes its singular values to the budget in every stage, with its orthogonality term in every loss."""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from sharing import rollout, train
from transformers import AutoModelForCausalLM

from align.config import Zero
from align.engine.plain import PlainEngine
from align.errors import AlignError
from align.peft.stateful import AdaLora, adalora, planned
from align.roles.alone import load_roles
from align.roles.placement import Placement, RunContext
from align.roles.specs import Actor

SETTINGS = {"init_r": 6, "target_r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
LAYERS = 4


def singular_values(model: PeftModel, name: str = "default") -> int:
    """How many are left."""
    values = [p for key, p in model.named_parameters() if "lora_E" in key and name in key.split(".")]
    return sum(int((p != 0).sum()) for p in values)


def test_ppo_prunes_to_the_budget_and_keeps_it(base):
    roles, *_ = load_roles(base, adalora(**SETTINGS), learning_rate=1e-2, critic="own", steps=10)
    model = roles.actor.model
    train(roles, 10, who=("actor",))
    assert singular_values(model) == LAYERS * 2
    ranks = [int((p != 0).sum()) for n, p in model.named_parameters() if "lora_E" in n]
    assert sum(ranks) == LAYERS * 2


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [1, 2])
def test_under_zero_it_is_what_it_is_in_plain_torch(base, tmp_path, stage):
    """10 steps with gradients clipped at 0.1; float32: the same ranks, weights to a thousandth of rate times steps."""
    pytest.importorskip("deepspeed")

    def trained(zero: Zero | None) -> PeftModel:
        torch.manual_seed(0)
        context = RunContext(torch.device("cpu"), torch.float32, make_engine, tmp_path, max_grad_norm=0.1, steps=10)
        placement = Placement(context, Actor(base, "auto", 1e-2, adalora(**SETTINGS), zero))
        roles = placement.roles(4)
        train(roles, 10, who=("actor",))
        return roles.actor.model

    plain, sharded = trained(None), trained(Zero(stage=stage))
    assert singular_values(plain) == singular_values(sharded) == LAYERS * 2
    for (name, one), other in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        if "lora_E" in name:
            assert torch.equal(one == 0, other == 0)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * 1e-2 * 10)


def make_engine(module, learning_rate, max_grad_norm, zero):
    if zero is None:
        return PlainEngine(module, learning_rate, max_grad_norm)
    from align.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(module, learning_rate, max_grad_norm, zero)


def test_the_orthogonality_term_is_pefts_and_in_ppos_loss(base):
    """PEFT adds it to the model's own loss; the same gradients, to 1e-6."""
    torch.manual_seed(0)
    config = planned(adalora(**SETTINGS, orth_reg_weight=0.7), 10, "sft")
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    ids = torch.arange(5, 15)[None]
    with_term = model(ids, labels=ids).loss
    without = model.get_base_model()(ids, labels=ids).loss
    torch.testing.assert_close(AdaLora().extra_loss(model, "default"), with_term - without, rtol=0, atol=1e-5)

    def far_from_orthogonal(weight: float) -> float:
        roles, *_ = load_roles(base, adalora(**SETTINGS, orth_reg_weight=weight), learning_rate=1e-2, steps=20)
        train(roles, 20, who=("actor",))
        return float(AdaLora().extra_loss(roles.actor.model, "default").detach()) / weight

    assert far_from_orthogonal(0.5) < 0.8 * far_from_orthogonal(1e-9)


def test_the_folder_has_the_zeros_too_and_goes_on(base, tmp_path):
    roles, *_ = load_roles(base, adalora(**SETTINGS), learning_rate=1e-2, steps=6)
    train(roles, 6, who=("actor",))
    roles.save(tmp_path)
    again, *_ = load_roles(str(tmp_path), adalora(**SETTINGS), learning_rate=1e-2, steps=12)
    data = rollout()
    torch.testing.assert_close(
        again.score(data, {"logp"}).logp_BT, roles.score(data, {"logp"}).logp_BT, rtol=0, atol=1e-6
    )
    train(again, 12, who=("actor",))
    assert singular_values(again.actor.model) == LAYERS * 2


def test_what_contradicts_the_plan_is_refused():
    assert planned(adalora(**SETTINGS), 50, "sft").total_step == 50
    assert planned(AdaLoraConfig(**SETTINGS, total_step=50), 50, "sft").total_step == 50
    with pytest.raises(AlignError, match=r"sft.peft.total_step=70, but this run makes 50 .*\n.*total_step=null"):
        planned(adalora(**SETTINGS, total_step=70), 50, "sft")
    with pytest.raises(AlignError, match="leave none of 50"):
        planned(adalora(**SETTINGS, tinit=30, tfinal=20), 50, "sft")
    with pytest.raises(AlignError, match="give total_step"):
        planned(adalora(**SETTINGS), None, "actor")
