"""How often the optimizer steps, what reaches it, and where the ratio starts, in every seating."""

import pytest
import torch
from runs import SETUPS, check_identical, play, trained


def optimizers(ppo) -> list:
    """Each optimizer that trains, once."""
    return [group.engine.optimizer for group in ppo.roles.groups if group.trained]


def watched(ppo) -> list[dict[str, float]]:
    """At each step of an optimizer the norms of the gradients that reach it, by role; filled as it trains."""
    seen: list[dict[str, float]] = []

    def watch(optimizer) -> None:
        step = optimizer.step

        def record() -> None:
            gradients = {g["role"]: [p.grad for p in g["params"] if p.grad is not None] for g in optimizer.param_groups}
            seen.append({role: float(torch.nn.utils.get_total_norm(found)) for role, found in gradients.items()})
            step()

        optimizer.step = record

    for optimizer in optimizers(ppo):
        watch(optimizer)
    return seen


@pytest.mark.parametrize(("epochs", "minibatches", "size"), [(1, 4, 1), (3, 2, 8)])
@pytest.mark.parametrize("setup", SETUPS)
def test_each_optimizer_steps_epochs_times_minibatches(make, rows, setup, epochs, minibatches, size):
    """However many micro-batches there are; a second step adds as many again."""
    ppo = make(setup, epochs=epochs, minibatches=minibatches, micro_batch_size=size)
    seen = watched(ppo)
    for turn in (1, 2):
        metrics = ppo.step(rows)
        assert len(seen) == turn * epochs * minibatches * len(optimizers(ppo))
        assert metrics["val/optimizer_steps"] == epochs * minibatches
    for optimizer in optimizers(ppo):
        for group in optimizer.param_groups:
            counts = {int(optimizer.state[p]["step"]) for p in group["params"]}
            assert counts == {2 * epochs * minibatches}, group["role"]


@pytest.mark.parametrize("setup", SETUPS)
def test_gradients_are_clipped_to_the_bound_a_role_at_a_time(make, rows, setup):
    """The metric is the norm before clipping; fp32 norms to one in a thousand."""
    bound = 1e-4
    ppo = make(setup, max_grad_norm=bound, epochs=1)
    seen = watched(ppo)
    metrics = ppo.step(rows)
    for role in ("actor", "critic"):
        norms = [found[role] for found in seen if role in found]
        assert norms == pytest.approx([bound] * 2, rel=1e-3)
        assert metrics[f"grad_norm/{role}"] > 10 * bound


@pytest.mark.parametrize("setup", SETUPS)
def test_a_bound_that_is_not_reached_changes_not_a_bit(make, rows, setup):
    free, wide = make(setup, max_grad_norm=0.0), make(setup, max_grad_norm=1e6)
    seen = watched(free)
    check_identical(play(free, rows, 1), play(wide, rows, 1))
    assert max(max(norms.values()) for norms in seen) > 0.01


def test_a_bound_between_the_norms_clips_one_role_alone(make, rows):
    """The critic's gradient, which is larger, does not shrink the actor's, though one optimizer holds both."""
    norms = make("adapter", max_grad_norm=0.0, epochs=1, minibatches=1).step(rows)
    small, large = sorted(("actor", "critic"), key=lambda role: norms[f"grad_norm/{role}"])
    bound = (norms[f"grad_norm/{small}"] * norms[f"grad_norm/{large}"]) ** 0.5
    ppo = make("adapter", max_grad_norm=bound, epochs=1, minibatches=1)
    seen = watched(ppo)
    ppo.step(rows)
    assert seen[0][small] == pytest.approx(norms[f"grad_norm/{small}"], rel=1e-4)
    assert seen[0][large] == pytest.approx(bound, rel=1e-4) and bound < 0.95 * norms[f"grad_norm/{large}"]


@pytest.mark.parametrize("setup", SETUPS)
def test_the_ratio_of_every_token_is_one_before_the_first_optimizer_step(make, rows, setup):
    """To 1e-5: fp32 log-probabilities of the same weights, in micro-batches of another size than when scored.

    In the third step too, when the weights have long left their start. Later minibatches move away.
    """
    ppo = make(setup, micro_batch_size=3)
    ratios, loss = [], ppo.policy_loss

    def record(logp_BT, old_logp_BT, advantage_BT, mask_BT):
        ratio = (logp_BT - old_logp_BT)[mask_BT].exp().detach()
        ratios.append((ppo.roles.actor.version, ratio))
        return loss(logp_BT, old_logp_BT, advantage_BT, mask_BT)

    ppo.policy_loss = record
    before = trained(ppo.roles)
    for _ in range(3):
        ratios.clear()
        version = ppo.roles.actor.version
        ppo.step(rows)
        first = [ratio for at, ratio in ratios if at == version]
        later = [ratio for at, ratio in ratios if at > version]
        assert len(first) > 1
        assert float((torch.cat(first) - 1).abs().max()) < 1e-5
        assert float((torch.cat(later) - 1).abs().max()) > 1e-3
    assert any(not torch.equal(before[name], weight) for name, weight in trained(ppo.roles).items())
