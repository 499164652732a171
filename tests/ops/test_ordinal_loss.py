"""Proportional odds: against the difference of two sigmoids, by hand, and where that difference is lost. float32."""

import math

import pytest
import torch
from torch.testing import assert_close

from align import ops

SCORE_B = torch.tensor([0.3, -2.0, 5.0])
THRESHOLD_L = torch.tensor([-1.0, 0.5, 2.0])


def slow(score: float, level: int, thresholds: list[float]) -> float:
    def below(k):
        return 0.0 if k < 0 else 1.0 if k == len(thresholds) else 1 / (1 + math.exp(score - thresholds[k]))

    return -math.log(below(level) - below(level - 1))


@pytest.mark.parametrize("level", range(4))
def test_against_the_difference_of_sigmoids(level):
    loss_B = ops.ordinal_loss(SCORE_B, torch.full((3,), level), THRESHOLD_L)
    wanted_B = [slow(score, level, THRESHOLD_L.tolist()) for score in SCORE_B.tolist()]
    assert_close(loss_B, torch.tensor(wanted_B), rtol=1e-5, atol=1e-6)


def test_levels_have_probabilities_that_sum_to_one():
    total_B = sum(torch.exp(-ops.ordinal_loss(SCORE_B, torch.full((3,), level), THRESHOLD_L)) for level in range(4))
    assert_close(total_B, torch.ones(3), rtol=1e-6, atol=1e-6)


def test_two_levels_are_a_yes_or_no():
    """-log sigmoid(score - threshold) for the upper: log(1 + e^-2) = 0.126928."""
    assert ops.ordinal_loss(torch.tensor([2.5]), torch.tensor([1]), torch.tensor([0.5])).item() == pytest.approx(
        0.126928, abs=1e-6
    )


def test_far_scores_keep_their_loss_and_gradient():
    """The middle of three levels at a score of 100: 100 - 0.5 - log(1 - e^-1.5) = 99.7525; the gradient is 1."""
    score_B = torch.tensor([100.0, -100.0], requires_grad=True)
    threshold_L = torch.tensor([-1.0, 0.5], requires_grad=True)
    loss_B = ops.ordinal_loss(score_B, torch.tensor([1, 1]), threshold_L)
    assert_close(loss_B, torch.tensor([99.7525, 99.2525]), rtol=1e-5, atol=0)
    loss_B.sum().backward()
    assert_close(score_B.grad, torch.tensor([1.0, -1.0]))
    assert threshold_L.grad.isfinite().all()
