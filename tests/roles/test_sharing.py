"""Roles on one backbone compute and train as on backbones of their own; nobody else moves by a bit."""

import pytest
import torch
from sharing import RATE, WANT, close, lora, moved, rollout, train, weights

from align.config import Zero
from align.peft.adapters import routed
from align.types import RewardState, Texts


def test_four_roles_sit_on_one_base(make_roles):
    roles, reward, said = make_roles()
    assert len(roles.groups) == 1
    assert roles.groups[0].backbone.adapters == {
        "actor": "default", "reference": "ref", "critic": "critic", "reward": "reward",
    }  # fmt: skip
    assert reward.wants == {"reward"}
    assert any(line.startswith("critic: the adapter of") and "on the actor's base" in line for line in said)


def test_all_four_score_in_one_trunk_pass(make_roles):
    roles, _, _ = make_roles()
    model, calls = roles.actor.model.get_base_model().model, []
    model.register_forward_hook(lambda module, args, output: calls.append(1))
    roles.micro_batch_size = 12
    roles.score(rollout(3), WANT)
    assert len(calls) == 1


def test_one_backbone_scores_as_backbones_of_their_own(make_roles, tokenizer):
    """fp32, 1e-5: the same weights, more rows in a batch."""
    shared, reward, _ = make_roles()
    apart, alone, _ = make_roles(critic="own", reward="own")
    assert len(apart.groups) == 2
    data = rollout(7)
    one, other = shared.score(data, WANT), apart.score(data, WANT - {"reward"})
    close(one, other, WANT - {"reward"})
    assert float(one.value_BT.abs().max()) > 0.1
    texts = Texts([], [], [])
    torch.testing.assert_close(
        reward(data, texts, RewardState(0, one)).score_B, alone(data, texts, RewardState(0)).score_B, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_backbone_trains_as_backbones_of_their_own(make_roles, checkpointing):
    """Three AdamW steps; norms to one in 10^4, scores to 1e-4: fp32 sums of more rows, in another order."""
    shared, _, _ = make_roles(checkpointing=checkpointing)
    apart, _, _ = make_roles(critic="own", reward="own")
    one, other = train(shared, 3), train(apart, 3)
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-4) and a.keys() == {"actor", "critic"}
    data = rollout(5, seed=9)
    close(shared.score(data, WANT), apart.score(data, WANT - {"reward"}), WANT - {"reward"}, atol=1e-4)


@pytest.mark.parametrize("who", [("actor",), ("critic",), ("actor", "critic")])
def test_a_step_moves_the_roles_that_train_and_not_a_bit_of_another(make_roles, who):
    roles, _, _ = make_roles()
    backbone = roles.groups[0].backbone
    before, wants = weights(backbone), {n for n, p in backbone.named_parameters() if p.requires_grad}
    norms = train(roles, 1, who)[0]
    assert set(norms) == set(who)
    part = {"actor": (".default.",), "critic": (".critic.", "value_head.")}
    mine = tuple(piece for role in who for piece in part[role])
    changed = moved(before, backbone)
    assert changed and all(any(piece in name for piece in mine) for name in changed)
    for role in who:
        assert any(piece in name for piece in part[role] for name in changed), role
    assert {n for n, p in backbone.named_parameters() if p.requires_grad} == wants


def test_switching_roles_leaves_requires_grad_and_the_active_adapter(make_roles):
    roles, _, _ = make_roles()
    model = roles.actor.model
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    for want in (WANT, {"ref_logp"}, {"value"}, {"reward"}, {"logp", "value"}):
        roles.score(rollout(3), want)
        with roles.actor.generating():
            pass
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert model.active_adapter == "default"


def test_the_reference_and_the_reward_do_not_move_by_a_bit_over_50_updates(make_roles):
    roles, _, _ = make_roles()
    data = rollout(6, seed=4)
    before = roles.score(data, WANT)
    train(roles, 50)
    after = roles.score(data, WANT)
    assert torch.equal(before.ref_logp_BT, after.ref_logp_BT) and torch.equal(before.reward_BK, after.reward_BK)
    assert not torch.allclose(before.logp_BT, after.logp_BT, atol=0.1)
    assert not torch.allclose(before.value_BT, after.value_BT, atol=0.1)


def test_an_exception_inside_a_routed_pass_leaves_nothing_behind(make_roles):
    roles, _, _ = make_roles()
    model, data = roles.actor.model, rollout(3)
    before = roles.score(data, WANT)
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(RuntimeError, match="on purpose"), routed(model, ["default", None, "critic"]):
        raise RuntimeError("on purpose")
    broken = model.get_base_model().model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        roles.score(data, WANT)
    broken.remove()
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    close(before, roles.score(data, WANT), atol=0)


def test_a_method_that_cannot_be_routed_takes_a_pass_for_each_adapter(make_roles, base, tmp_path):
    """An actor with DoRA: one base still, and the numbers of backbones of their own; fp32, 1e-4."""
    dora = lora(use_dora=True)
    shared, _, _ = make_roles(reward="own", path=base, peft=dora)
    apart, _, _ = make_roles(critic="own", reward="own", path=base, peft=dora)
    backbone = shared.groups[0].backbone
    assert len(shared.groups) == 1 and len(backbone.passes({"actor", "reference", "critic"})) == 3
    for a, b in zip(train(shared, 2), train(apart, 2), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    data, want = rollout(5, seed=9), {"logp", "ref_logp", "value"}
    close(shared.score(data, want), apart.score(data, want), want, atol=1e-4)


@pytest.mark.deepspeed
@pytest.mark.parametrize("critic", ["adapter", "head"])
@pytest.mark.parametrize("stages", [(1, 1), (2, None), (2, 2), (None, 2)])
def test_one_backbone_under_deepspeed_trains_as_in_plain_torch(make_roles, critic, stages):
    """Weights within a thousandth of three steps' rates; fp32. Then a critic that rests does not move.

    Without clipping, since a head on the trunk is clipped together with the actor there.
    """
    pytest.importorskip("deepspeed")
    zero = {role: Zero(stage=stage) for role, stage in zip(("actor", "critic"), stages, strict=True) if stage}
    found = {}
    for name, sharding in (("plain", {}), ("sharded", zero)):
        roles, _, _ = make_roles(critic=critic, reward="own", zero=sharding, max_grad_norm=0.0, trunk_gradient=0.5)
        assert len({id(group.backbone.model) for group in roles.groups}) == 1, "one base"
        train(roles, 3)
        params = {n: p for group in roles.groups for n, p in group.backbone.named_parameters() if p.requires_grad}
        found[name] = torch.cat([params[n].detach().flatten() for n in sorted(params)])
        before, backbone = weights(roles.group("critic").backbone), roles.group("critic").backbone
        train(roles, 1, ("actor",))
        assert {"critic" in n or "value" in n for n in moved(before, backbone)} == {False}
    assert float((found["plain"] - found["sharded"]).abs().max()) < 1e-3 * RATE * 3
