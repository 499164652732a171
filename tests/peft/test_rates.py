"""Learning rates by method, and LoRA+ in PPO's optimizer and in TRL's."""

from __future__ import annotations

import pytest
import torch
from methods import method
from peft import LoraConfig
from sharing import train
from transformers import TrainingArguments

from align.config import ActorOptions as Options
from align.errors import AlignError
from align.peft.rates import FULL, check_loraplus, rate
from align.roles.alone import load_roles
from align.roles.roles import Roles
from align.roles.start import start


@pytest.mark.parametrize(
    "value, name, expected",
    [
        (3e-4, "lora", 3e-4),
        (3e-4, None, 3e-4),
        (3e-4, "houlsby", 3e-4),
        ("lora:3e-4", "lora", 3e-4),
        ("lora:3e-4", "qlora", 3e-4),
        ("lora:3e-4", "adalora", 9e-4),
        ("lora:3e-4", "houlsby", 9e-4),
        ("lora:3e-4", "parallel", 3e-4),
        ("lora:3e-4", "prefix", 3e-4),
        ("lora:3e-4", "p_tuning_v2", 9e-4),
    ],
)
def test_a_number_is_itself_and_loras_rate_is_loras(value, name, expected):
    assert rate(value, name and method(name)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "name, times", [("lora", 1), ("adalora", 3), ("houlsby", 3), ("pfeiffer", 1), ("p_tuning", 0.3), ("prefix", 1)]
)
def test_ppo_has_multiples_of_its_own(name, times):
    assert rate("lora:1e-3", method(name), ppo=True) == pytest.approx(times * 1e-3)


def test_all_weights_take_a_tenth_of_loras_rate():
    assert FULL == 0.1 and rate("lora:2e-4", None) == pytest.approx(2e-5)


@pytest.mark.parametrize("value", ["lora", "lora:", "lora:fast", "lora:-1", "lora:2", "full:1e-4", 0, [1e-4]])
def test_other_words_are_refused_with_what_to_write(value):
    with pytest.raises(AlignError, match=r"actor.learning_rate=.*: use a number above 0 and at most 1, or lora:NUMBER"):
        Options(learning_rate=value)
    assert Options().learning_rate.startswith("lora:")


@pytest.mark.parametrize("name", ["none", "houlsby", "adalora"])
def test_loraplus_is_for_lora(name):
    instead = r"use peft@sft.peft=lora, or sft.loraplus_lr_ratio=null"
    with pytest.raises(AlignError, match=rf"sft.loraplus_lr_ratio=16: .*\n  {instead}"):
        check_loraplus(16.0, None if name == "none" else method(name), "sft")
    check_loraplus(16.0, method("lora"), "sft")
    check_loraplus(None, method(name) if name != "none" else None, "sft")


def moved(roles: Roles, before: dict[str, torch.Tensor]) -> dict[str, float]:
    return {n: float((p - before[n]).abs().max()) for n, p in roles.actor.model.named_parameters() if n in before}


def adapters(base: str, ratio: float | None) -> tuple[Roles, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    roles, *_ = load_roles(base, method("lora"), learning_rate=1e-3, critic="auto", loraplus_lr_ratio=ratio)
    before = {n: p.detach().clone() for n, p in roles.actor.model.named_parameters() if p.requires_grad}
    return roles, before


def test_in_ppo_b_moves_so_many_times_as_far_in_the_first_step(base):
    """Adam's first step is the rate for every weight with a gradient; A has none yet, since B is 0."""
    plain, before = adapters(base, None)
    train(plain)
    plus, _ = adapters(base, 16.0)
    norms = train(plus)[0]
    one, other = moved(plain, before), moved(plus, before)
    for name in (n for n in before if ".lora_B.default." in n):
        assert one[name] == pytest.approx(1e-3, rel=0.05) and other[name] == pytest.approx(16e-3, rel=0.05)
    assert set(norms) == {"actor", "critic"} and plus.rates() == {"actor": 1e-3, "critic": 1e-3}
    plus.group("actor").engine.set_rate("actor", 1e-4)
    groups = plus.group("actor").engine.optimizer.param_groups
    assert sorted({g["lr"] for g in groups if g["role"] == "actor"}) == pytest.approx([1e-4, 16e-4])


def test_in_ppo_the_gradient_is_clipped_as_one(base):
    """The norm of a role is over both of its groups."""
    plain, plus = adapters(base, None)[0], adapters(base, 16.0)[0]
    assert train(plain)[0] == pytest.approx(train(plus)[0], rel=1e-5)


def test_in_trls_stages_it_is_pefts(base, tmp_path):
    from align.stages.training import loraplus

    begun = start(
        base, key="sft", head="causal", peft=method("lora"), adapter="auto", out=tmp_path, dtype=torch.float32
    )
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=2e-4, adam_beta2=0.95, use_cpu=True)
    optimizer = loraplus(begun.model, args, 16.0)
    names = {id(p): n for n, p in begun.model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == 28
    assert all(lr == pytest.approx(32e-4 if ".lora_B." in n else 2e-4) for n, lr in rates.items())
    assert loraplus(begun.model, args, None) is None


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_in_trls_stages_loraplus_decays_weights_and_embeddings_learn(base, tmp_path, decay):
    """AdamW's first step by hand: w (1 - rate decay) - rate sign(gradient); float32, an epsilon of 1e-8."""
    from align.stages.training import loraplus

    lora = LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False)
    begun = start(base, key="sft", head="causal", peft=lora, adapter="auto", out=tmp_path, dtype=torch.float32)
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=1e-2, weight_decay=decay, use_cpu=True)
    optimizer = loraplus(begun.model, args, 4.0)
    trained = {name: p for name, p in begun.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    for p in trained.values():
        p.grad = torch.full_like(p, -2.0)
    optimizer.step()
    assert sum("lora_embedding" in name for name in trained) == 2
    for name, p in trained.items():
        rate = 4e-2 if ".lora_B." in name else 1e-2
        assert torch.allclose(p, before[name] * (1 - rate * decay) + rate, atol=1e-6), name


def test_in_trls_stages_loraplus_keeps_the_optimizer_that_is_named(base, tmp_path):
    from align.stages.training import loraplus

    begun = start(
        base, key="sft", head="causal", peft=method("lora"), adapter="auto", out=tmp_path, dtype=torch.float32
    )
    args = TrainingArguments(output_dir=str(tmp_path), optim="sgd", optim_args="momentum=0.5", use_cpu=True)
    optimizer = loraplus(begun.model, args, 16.0)
    assert type(optimizer) is torch.optim.SGD and optimizer.defaults["momentum"] == 0.5
