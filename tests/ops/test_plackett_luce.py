"""Rankings: against every permutation, against pairs, ties by hand. float32; 1e-6 by hand, 1e-5 over 24 orders."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from align import ops


def loss(scores, ranks, mask=None):
    score_BK, rank_BK = torch.tensor([scores]), torch.tensor([ranks])
    there = torch.tensor([mask]) if mask else torch.ones_like(rank_BK, dtype=torch.bool)
    return ops.plackett_luce(score_BK, rank_BK, there).item()


@pytest.mark.parametrize("count", [3, 4])
def test_the_orders_of_answers_have_probabilities_that_sum_to_one(count):
    scores = [0.3, -1.2, 2.0, 0.7][:count]
    total = 0.0
    for order in itertools.permutations(range(count)):
        left, probability = list(order), 1.0
        while left:  # the best of those left, by a softmax
            probability *= math.exp(scores[left[0]]) / sum(math.exp(scores[i]) for i in left)
            left.pop(0)
        ranks = [order.index(i) for i in range(count)]
        assert loss(scores, ranks) == pytest.approx(-math.log(probability), abs=1e-5)
        total += math.exp(-loss(scores, ranks))
    assert total == pytest.approx(1.0, abs=1e-5)


def test_of_two_answers_it_is_the_pairwise_loss_with_its_gradient():
    score_BK = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    other_BK = score_BK.detach().clone().requires_grad_()
    rank_BK = torch.tensor([[0, 1]] * 7)
    got_B = ops.plackett_luce(score_BK, rank_BK, torch.ones(7, 2, dtype=torch.bool))
    expected_B = -torch.nn.functional.logsigmoid(other_BK[:, 0] - other_BK[:, 1])  # trl 1.16, RewardTrainer
    assert_close(got_B, expected_B, rtol=0, atol=1e-6)
    got_B.sum().backward()
    expected_B.sum().backward()
    assert_close(score_BK.grad, other_BK.grad, rtol=0, atol=1e-6)


def test_ties_by_hand():
    # Weights 3, 1, 2: the first two tie, ahead of the third. Efron: 3/6 · 1/(6 − (3 + 1)/2), then 2/2.
    scores = [math.log(3.0), 0.0, math.log(2.0)]
    assert loss(scores, [0, 0, 1]) == pytest.approx(-math.log(3 / 6 * 1 / 4), abs=1e-6)
    # The last two tie: 3/6, then 1/3 · 2/(3 − 3/2).
    assert loss(scores, [0, 4, 4]) == pytest.approx(-math.log(3 / 6 * 1 / 3 * 2 / 1.5), abs=1e-6)


def test_ties_are_best_at_equal_scores():
    score_BK = torch.tensor([[1.5, 1.5]], requires_grad=True)
    ops.plackett_luce(score_BK, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    assert_close(score_BK.grad, torch.zeros(1, 2), rtol=0, atol=1e-6)
    assert loss([1.0, 1.0], [0, 0]) < loss([1.0, 2.0], [0, 0])


def test_an_answer_that_is_not_there_changes_nothing():
    alone = loss([0.2, -0.4], [1, 0])
    assert loss([0.2, math.nan, -0.4], [1, 0, 0], [True, False, True]) == pytest.approx(alone, abs=1e-6)
    score_BK = torch.tensor([[0.2, math.inf, -0.4]], requires_grad=True)
    ops.plackett_luce(score_BK, torch.tensor([[1, 0, 0]]), torch.tensor([[True, False, True]])).sum().backward()
    assert score_BK.grad.isfinite().all() and score_BK.grad[0, 1] == 0
    assert loss([1.0, 2.0], [0, 1], [False, False]) == 0


def test_a_hopeless_ranking_is_its_difference():
    assert loss([-500.0, 500.0], [0, 1]) == 1000.0
