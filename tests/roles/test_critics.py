"""Where a critic and a reward model sit, why not elsewhere, and what their folders hold."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sharing import RATE, close, lora, rollout, train
from transformers import AutoModelForSequenceClassification

from align.engine.plain import PlainEngine
from align.errors import AlignError
from align.roles.placement import Placement, RunContext
from align.roles.specs import Actor, Critic


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_a_heads_gradient_reaches_the_trunk_by_its_scale(make_roles, scale):
    """The actor's gradient with a value loss is that without, plus `scale` times the value's own."""
    gradients = {}
    for name, who, trunk in (
        ("actor", ("actor",), scale),
        ("value", ("critic",), 1.0),
        ("both", ("actor", "critic"), scale),
    ):
        roles, _, _ = make_roles(critic="head", reward="own", trunk_gradient=trunk)
        engine, backbone = roles.groups[0].engine, roles.groups[0].backbone
        with torch.no_grad():
            backbone.value_head.weight.fill_(0.1)
        engine.step = lambda: {}
        train(roles, 1, who)
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in backbone.trained("actor")]
        gradients[name] = torch.cat([g.flatten() for g in found])
        assert backbone.value_head.weight.grad is not None or name == "actor"
    assert float(gradients["value"].norm()) > 1e-2
    torch.testing.assert_close(gradients["both"], gradients["actor"] + scale * gradients["value"], rtol=1e-4, atol=1e-5)


def test_a_head_needs_no_second_trunk_pass(make_roles):
    roles, _, _ = make_roles(critic="head", reward="own")
    calls = []
    roles.actor.model.get_base_model().model.register_forward_hook(lambda *_: calls.append(1))
    train(roles)
    assert len(calls) == 2, "one a micro-batch"
    assert set(roles.rates()) == {"actor", "critic"}


@pytest.mark.parametrize("critic", ["adapter", "head", "own"])
def test_heads_and_adapters_are_in_the_checkpoint_and_nothing_else(
    make_roles, critic, tmp_path, base, rm, sft, tokenizer
):
    """Loaded back, the same numbers: fp32, 1e-6."""
    roles, _, _ = make_roles(critic=critic)
    train(roles, 2)
    data = rollout(5, seed=8)
    before = roles.score(data, {"logp", "value"})
    roles.save(tmp_path / "saved")
    found = sorted(str(f.relative_to(tmp_path / "saved")) for f in (tmp_path / "saved").rglob("*.safetensors"))
    alone = ["adapter_model.safetensors", "critic/value_head.safetensors"]
    assert found == (alone if critic == "head" else sorted([*alone, "critic/adapter_model.safetensors"]))
    names = load_file(tmp_path / "saved" / "adapter_model.safetensors").keys()
    assert names and all("lora_" in name for name in names)
    context = RunContext(
        torch.device("cpu"), torch.float32, lambda m, rates, norm, zero: PlainEngine(m, rates, norm), tmp_path / "out"
    )
    placement = Placement(context, Actor(str(tmp_path / "saved"), "continue", RATE, lora(), None))
    Critic(str(tmp_path / "saved" / "critic"), "auto", RATE, lora(), None, critic).place(placement)
    close(before, placement.roles(3).score(data, {"logp", "value"}), {"logp", "value"}, atol=1e-6)
    if critic != "head":
        again = PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), tmp_path / "saved" / "critic"
        )
        assert any("critic" not in n and "lora_A" in n for n, _ in again.named_parameters())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"peft": lora(r=4)}, ""),
        ({"critic_peft": lora(r=4)}, "its adapter differs: r is 8 there, 4 in the settings"),
        ({"critic_peft": None}, "it trains all its weights"),
        ({"actor_peft": None}, "the actor trains all of its weights"),
        ({"critic_path": "reward_base"}, "it stands on"),
        ({"critic_adapter": "new"}, "its earlier adapter is merged into its own base"),
    ],
)
def test_a_critic_that_cannot_share_says_why(base, rm, reward_base, tmp_path, change, why):
    said: list[str] = []
    context = RunContext(
        torch.device("cpu"), torch.float32, lambda m, rates, norm, zero: PlainEngine(m, rates, norm),
        tmp_path, tell=said.append,
    )  # fmt: skip

    def place(backbone: str) -> Placement:
        actor = change.get("actor_peft", change.get("peft", lora()))
        placement = Placement(context, Actor(base, "auto", RATE, actor, None))
        path = reward_base if "critic_path" in change else rm
        adapter = change.get("critic_adapter", "auto")
        Critic(path, adapter, RATE, change.get("critic_peft", lora()), None, backbone).place(placement)
        return placement

    placement = place("auto")
    assert len(placement.plans) == (2 if why else 1)
    assert why in said[-1]
    if why:
        trains = {n for n, p in placement.actor.model.named_parameters() if p.requires_grad}
        assert not any("critic" in n for n, _ in placement.actor.model.named_parameters()), "nothing stays behind"
        assert trains
        with pytest.raises(AlignError, match="critic=adapter: the critic cannot sit on the actor's base: ") as error:
            place("adapter")
        assert why in str(error.value)


def test_a_shared_reward_that_cannot_be_is_refused(make_roles):
    """An actor that trains all its weights is no base to stand on."""
    with pytest.raises(AlignError, match=r"reward\.backbone=shared: the reward model cannot sit .*: the actor"):
        make_roles(critic=None, reward="shared", peft=None)
    _, reward, said = make_roles(critic=None, reward="auto", peft=None)
    assert reward.wants == set() and "its own backbone (the actor trains all of its weights)" in said[-1]
