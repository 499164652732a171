"""Losses of policy, critic and reward model. float32; by hand 1e-6, one rounding of numbers near 1."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align import ops


def policy(ratio, advantage, **settings):
    """The loss and its gradient in logp, for one token of old log-probability -2."""
    old_logp = torch.tensor([-2.0])
    logp = (old_logp + math.log(ratio)).requires_grad_()
    loss = ops.policy_loss(logp, old_logp, torch.tensor([advantage]), **{"clip": 0.2, **settings})
    loss.sum().backward()
    return loss.item(), logp.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # good, and already likelier: clipped, no gradient
        (0.5, 2.0, -1.0, -1.0),  # good, but less likely: not clipped, it may come back
        (1.5, -2.0, 3.0, 3.0),  # bad, and likelier: not clipped
        (0.5, -2.0, 1.6, 0.0),  # bad, and already less likely: clipped
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_policy_loss_is_clipped_only_in_the_direction_already_taken(ratio, advantage, loss, gradient):
    assert policy(ratio, advantage) == (pytest.approx(loss, abs=1e-6), pytest.approx(gradient, abs=1e-6))


def test_clip_high_moves_the_upper_bound_alone():
    assert policy(1.5, 1.0, clip_high=0.28)[0] == pytest.approx(-1.28, abs=1e-6)
    assert policy(0.5, -1.0, clip_high=0.28)[0] == pytest.approx(0.8, abs=1e-6)


def test_dual_clip_bounds_the_loss_of_a_bad_token():
    assert policy(10.0, -2.0)[0] == pytest.approx(20.0, rel=1e-6)
    assert policy(10.0, -2.0, dual_clip=3.0) == (pytest.approx(6.0), 0.0)
    assert policy(10.0, 2.0, dual_clip=3.0) == policy(10.0, 2.0)
    assert policy(1.1, -2.0, dual_clip=3.0) == policy(1.1, -2.0)


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, math.nan])
def test_a_dual_clip_not_above_one_is_refused(dual_clip):
    with pytest.raises(ValueError, match="dual_clip"):
        policy(1.0, 1.0, dual_clip=dual_clip)


def test_at_ratio_one_the_gradient_is_that_of_the_policy_gradient():
    logp = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantage = torch.tensor([1.0, -0.5, 2.0])
    ops.policy_loss(logp, logp.detach(), advantage, 0.2).sum().backward()
    assert torch.equal(logp.grad, -advantage)


def test_a_ratio_that_would_overflow_gives_no_nan():
    loss = ops.policy_loss(torch.tensor([0.0, 0.0]), torch.tensor([-500.0, -500.0]), torch.tensor([0.0, -1.0]), 0.2)
    assert loss[0] == 0 and loss.isfinite().all()


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-5, 5))
def test_policy_loss_is_never_below_the_unclipped_one(logp, old_logp, advantage):
    loss = ops.policy_loss(torch.tensor(logp), torch.tensor(old_logp), torch.tensor(advantage), 0.2)
    assert loss.item() >= -advantage * math.exp(logp - old_logp) - 1e-3  # values reach 2000: 1e-3 is float32


@pytest.mark.parametrize(
    ("value", "old_value", "return_", "loss", "gradient"),
    [
        (1.1, 1.0, 2.0, 0.405, -0.9),  # inside the clip: half of 0.9 squared
        (2.0, 1.0, 2.0, 0.32, 0.0),  # right, but too far from the old value: the clipped 1.2 is 0.8 off
        (0.0, 1.0, 2.0, 2.0, -2.0),  # moved away from the return: the value's own error is the larger
        (3.0, 1.0, 0.5, 3.125, 2.5),
    ],
)
def test_value_loss_is_half_the_larger_squared_error(value, old_value, return_, loss, gradient):
    value = torch.tensor([value], requires_grad=True)
    got = ops.value_loss(value, torch.tensor([old_value]), torch.tensor([return_]), 0.2)
    got.sum().backward()
    assert got.item() == pytest.approx(loss, abs=1e-6)
    assert value.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_pairwise_loss_by_hand():
    chosen_B, rejected_B = torch.tensor([1.0, 0.0]), torch.tensor([1.0, math.log(3.0)])
    # sigmoid(0) = 1/2; sigmoid(-log 3) = 1/4.
    expected_B = torch.tensor([math.log(2.0), math.log(4.0)])
    assert_close(ops.pairwise_loss(chosen_B, rejected_B), expected_B, rtol=0, atol=1e-6)


def test_a_margin_is_as_good_as_a_lower_chosen_score():
    chosen_B, rejected_B, margin_B = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    with_margin = ops.pairwise_loss(chosen_B, rejected_B, margin_B)
    assert_close(with_margin, ops.pairwise_loss(chosen_B - margin_B, rejected_B), rtol=1e-5, atol=1e-6)


def test_pairwise_loss_of_a_hopeless_pair_is_its_difference():
    assert ops.pairwise_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == 1000.0
