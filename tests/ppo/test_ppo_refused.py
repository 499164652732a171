"""After a refused update nothing is left of it: weights as before to the bit, and no gradient for a later step."""

import pytest
import torch
from compare_weights import same, weights

from align.errors import AlignError

CRITICS = ("own", "adapter", "head")
ROLES = ("actor", "critic")


def all_weights(ppo) -> dict[str, torch.Tensor]:
    return {f"{i}/{n}": p for i, group in enumerate(ppo.roles.groups) for n, p in weights(group.backbone).items()}


def nothing_is_left(ppo, before) -> None:
    assert all(same(before, all_weights(ppo)).values())
    assert not any(group.waiting for group in ppo.roles.groups)
    assert all(p.grad is None for group in ppo.roles.groups for p in group.backbone.parameters())


def goes_on_as(ppo, other, experience) -> None:
    """The next update is that of a twin which was never refused, to the bit."""
    one, two = ppo.update(experience), other.update(experience)
    assert one == two and one["grad_norm/actor"] > 1e-3
    assert all(same(all_weights(ppo), all_weights(other)).values())


def made(make_ppo, rows, critic):
    """A loop after a step, the experience of that step's rollout, and the row that its last micro-batch ends with."""
    ppo = make_ppo(minibatches=1, epochs=1, critic=critic)
    ppo.step(rows)
    rollout, scored = ppo.last
    experience, _ = ppo.experience(rollout, ppo.roles.score(rollout, {"logp", "ref_logp", "value"}), scored)
    return ppo, experience, int(rollout.length_B().argsort(descending=True, stable=True)[-1])


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_loss_that_is_not_finite_leaves_no_gradient_of_the_micro_batches_before(make_ppo, rows, critic, role):
    (ppo, experience, last), (twin, *_) = (made(make_ppo, rows, critic) for _ in range(2))
    before, groups = all_weights(ppo), list(ppo.roles.micro_batches(experience.rollout.length_B()))
    old_BT = {"actor": experience.old.logp_BT, "critic": experience.old.value_BT}[role]
    kept = float(old_BT[last, 0])
    old_BT[last, 0] = torch.nan
    backwards = []
    for group in ppo.roles.groups:
        backward = group.engine.backward
        group.engine.backward = lambda loss, last, then=backward: (backwards.append(1), then(loss, last))
    with pytest.raises(AlignError, match=rf"micro-batch {len(groups)}: the loss of the {role} is nan"):
        ppo.update(experience)
    assert len(groups) > 1 and backwards, "gradients were there to be left behind"
    nothing_is_left(ppo, before)
    old_BT[last, 0] = kept
    goes_on_as(ppo, twin, experience)


def steep(ppo, role, last) -> None:
    """The loss of `role` is what it was, with an infinite slope in the micro-batch that row `last` is in."""
    here, train, loss = [], ppo.roles.train, ppo.policy_loss

    def step_BT(x_BT):
        return (x_BT - x_BT.detach()).clamp(min=0).sqrt() if here[-1] else 0.0

    def watched(micro, *more):
        here.append(bool((micro.rollout.row_B == last).any()))
        train(micro, *more)

    ppo.roles.train = watched
    if role == "actor":
        ppo.policy_loss = lambda logp_BT, *more: loss(logp_BT, *more) + step_BT(logp_BT)
    else:
        ppo.roles.group("critic").backbone.value_head.register_forward_hook(
            lambda module, args, value: value + step_BT(value) if torch.is_grad_enabled() else None
        )


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_gradient_that_is_not_finite_moves_no_role_and_is_named(make_ppo, rows, critic, role):
    """A critic's, too, on a backbone of its own, whose step comes after the actor's."""
    ppo, experience, last = made(make_ppo, rows, critic)
    steep(ppo, role, last)
    before, groups = all_weights(ppo), list(ppo.roles.micro_batches(experience.rollout.length_B()))
    named = "(actor|critic)" if critic == "head" else role  # the value's gradient goes through the actor's adapter
    words = rf"PPO step 2, epoch 1, minibatch 1, micro-batch {len(groups)}: the norm of the gradient of {named} is nan"
    with pytest.raises(AlignError, match=words):
        ppo.update(experience)
    nothing_is_left(ppo, before)


def test_a_gradient_too_large_in_sum_alone_is_told_of_the_minibatch(make_ppo, rows):
    """Two micro-batches of one row: norms of 1.2e19 whose squares fp32 holds, and 2.4e19, which it does not."""
    (ppo, experience, last), (twin, *_) = (made(make_ppo, rows, "own") for _ in range(2))
    twice = experience[torch.tensor([last, last])]
    ppo.roles.micro_batch_size = twin.roles.micro_batch_size = 1
    twin.policy_loss = lambda logp_BT, *more: logp_BT
    scale = 2.4e19 / twin.update(twice)["grad_norm/actor"]
    ppo.policy_loss = lambda logp_BT, *more: scale * logp_BT
    before = all_weights(ppo)
    with pytest.raises(AlignError, match=r"minibatch 1: the norm of the gradient of actor is inf"):
        ppo.update(twice)
    nothing_is_left(ppo, before)


def test_an_error_of_the_users_own_loss_leaves_no_gradient(make_ppo, rows):
    (ppo, experience, _), (twin, *_) = (made(make_ppo, rows, "own") for _ in range(2))
    loss, calls = ppo.policy_loss, []

    def broken(*args):
        calls.append(1)
        return loss(*args) if len(calls) == 1 else 1 / 0

    ppo.policy_loss, before = broken, all_weights(ppo)
    with pytest.raises(ZeroDivisionError):
        ppo.update(experience)
    nothing_is_left(ppo, before)
    ppo.policy_loss = loss
    goes_on_as(ppo, twin, experience)
