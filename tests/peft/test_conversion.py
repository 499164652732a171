"""Adapters that equal a LoRA: the folder that is written, read by plain PEFT, changes every weight alike.

float32 on CPU; a product of two factors is rounded another way than the method's own, by a few times 2^-24 of it.
"""

from __future__ import annotations

import pytest
import torch
from methods import method
from peft import LoHaConfig, LoraConfig, MissConfig, PeftConfig, PeftModel, get_peft_model
from sharing import rollout, train, weights
from transformers import AutoModelForCausalLM

from align.peft import routes
from align.peft.merging import rank_of, save_as_lora
from align.roles.alone import load_roles
from align.types import Policy

CASES = {
    "adalora": lambda: method("adalora"),
    "loha": lambda: method("loha"),
    "loha, two ranks": lambda: LoHaConfig(
        r=2, alpha=6, rank_pattern={"q_proj": 3}, target_modules=["q_proj", "up_proj"]
    ),
    "miss": lambda: method("miss"),
    "miss, not a divisor": lambda: method("miss", "peft.r=24"),
    "miss, repeated": lambda: MissConfig(r=8, mini_r=4, init_weights="mini", target_modules="all-linear"),
    "vera": lambda: method("vera"),
}


def changes(model: PeftModel) -> dict[str, torch.Tensor]:
    """What each layer's merging would add to its weight, computed by PEFT."""
    found = {}
    for path, layer in model.get_base_model().named_modules():
        if hasattr(layer, "merge"):
            before = layer.get_base_layer().weight.data.double()
            layer.get_base_layer().weight.data = torch.zeros_like(before, dtype=torch.float32)
            layer.merge(safe_merge=True)
            found[path] = layer.get_base_layer().weight.data
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.data = before.float()
    return found


def trained(config: PeftConfig, base: str) -> Policy:
    torch.manual_seed(0)
    roles = load_roles(base, config, learning_rate=3e-2, steps=3)[0]
    train(roles, 2, who=("actor",))
    return roles.actor


@pytest.mark.parametrize("case", CASES)
def test_the_lora_of_an_adapter_changes_every_weight_alike(case, base, tmp_path):
    policy = trained(CASES[case](), base)
    config, before = policy.model.peft_config["default"], weights(policy.model)
    assert routes.route(config).mode == "converted"
    policy.save_as_lora(tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())

    saved = LoraConfig.from_pretrained(tmp_path)
    assert type(saved) is LoraConfig and max([saved.r, *saved.rank_pattern.values()]) == rank_of(config)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path).eval()
    ids_BN = rollout().input_ids_BN()
    with torch.no_grad():
        torch.testing.assert_close(plain(ids_BN).logits, policy.model(ids_BN).logits, rtol=0, atol=2e-5)
    mine, theirs = changes(policy.model), changes(plain)
    assert mine.keys() == theirs.keys()
    for path, change in mine.items():
        error = float((theirs[path] - change).norm() / change.norm())
        assert change.norm() > 0 and error < 1e-6, (path, error)


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        (lambda: LoHaConfig(r=22, target_modules="all-linear"), "converted"),
        (lambda: LoHaConfig(r=23, target_modules="all-linear"), "merged"),
        (lambda: LoHaConfig(r=8, rank_pattern={"q_proj": 23}, target_modules="all-linear"), "merged"),
        (lambda: MissConfig(r=16, init_weights="bat", target_modules="all-linear"), "merged"),
        (lambda: MissConfig(r=16, bias="all", target_modules="all-linear"), "merged"),
        (lambda: MissConfig(r=16, modules_to_save=["lm_head"], target_modules="all-linear"), "merged"),
        (lambda: method("vera", "peft.r=1024"), "merged"),
        (lambda: method("adalora", "peft.init_r=600"), "merged"),
    ],
)
def test_what_vllm_would_refuse_as_lora_is_merged(config, mode):
    way = routes.route(config())
    assert way.mode == mode and bool(way.why) == (mode == "merged")


def test_a_method_that_equals_no_lora_is_not_saved_as_one(base, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), method("ia3"))
    with pytest.raises(KeyError, match="IA3"):
        save_as_lora(model, tmp_path)
