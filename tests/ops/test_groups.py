"""GRPO, Dr. GRPO and REINFORCE++ advantages. float32; loops 1e-4 for sums of scores up to 100."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align import ops

NAN = math.nan
ROWS = st.lists(
    st.tuples(st.integers(-100, 100).map(float) | st.just(NAN), st.integers(0, 2)), min_size=1, max_size=8
).map(lambda rows: rows + rows)  # no group of one


def test_grpo_by_hand():
    # Group 7: 1, 2, 6 has mean 3 and unbiased variance 7; group 4: 5, 3 has mean 4 and variance 2.
    score_B, group_B = torch.tensor([1.0, 5.0, 2.0, 6.0, 3.0]), torch.tensor([7, 4, 7, 7, 4])
    expected = [-2 / 7**0.5, 1 / 2**0.5, -1 / 7**0.5, 3 / 7**0.5, -1 / 2**0.5]
    assert_close(ops.grpo(score_B, group_B), torch.tensor(expected), rtol=0, atol=2e-6)  # 1e-6 under the root


def test_dr_grpo_by_hand():
    score_B, group_B = torch.tensor([1.0, 5.0, 2.0, 6.0, 3.0]), torch.tensor([7, 4, 7, 7, 4])
    assert ops.dr_grpo(score_B, group_B).tolist() == [-2.0, 1.0, -1.0, 3.0, -1.0]


def test_dr_grpo_is_leave_one_out_scaled():
    """Of K: score - mean = (score - mean of the others) (K - 1) / K."""
    score_B, group_B = torch.randn(6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 1, 1])
    assert_close(ops.dr_grpo(score_B, group_B), ops.rloo(score_B, group_B) * 2 / 3, rtol=0, atol=1e-6)


@pytest.mark.parametrize("advantage", [ops.grpo, ops.dr_grpo])
def test_no_opinion_has_no_advantage_and_is_in_no_mean(advantage):
    with_nan = advantage(torch.tensor([1.0, NAN, 3.0, NAN, 5.0]), torch.tensor([0, 0, 0, 1, 1]))
    alone = advantage(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))
    assert with_nan.tolist() == [alone[0], 0.0, alone[1], 0.0, 0.0]


@pytest.mark.parametrize("score", [0.1, 100.1, -7.3])
def test_equal_scores_have_no_advantage_in_grpo(score):
    """Three times 100.1 has a float32 mean that is 8e-6 off: over a deviation of as much, an advantage of -0.9."""
    assert ops.grpo(torch.full((3,), score), torch.zeros(3, dtype=torch.long)).abs().max() < 1e-6


@pytest.mark.parametrize("advantage", [ops.grpo, ops.dr_grpo])
def test_a_group_of_one_is_refused(advantage):
    with pytest.raises(ValueError, match="group 9 has one completion"):
        advantage(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([8, 8, 9]))


@given(ROWS)
def test_group_advantages_are_the_obvious_loop(rows):
    scores, groups = zip(*rows, strict=True)
    centred, scaled = [], []
    for score, group in rows:
        known = [s for s, g in rows if g == group and not math.isnan(s)]
        centred.append(0.0 if math.isnan(score) else score - statistics.mean(known))
        scaled.append(centred[-1] / (statistics.stdev(known) + 1e-6) if len(known) > 1 else 0.0)
    score_B, group_B = torch.tensor(scores), torch.tensor(groups)
    assert_close(ops.dr_grpo(score_B, group_B), torch.tensor(centred), rtol=1e-5, atol=1e-4)
    assert_close(ops.grpo(score_B, group_B), torch.tensor(scaled), rtol=1e-5, atol=1e-4)


@given(ROWS, st.floats(0.5, 4), st.floats(-10, 10))
def test_grpo_does_not_change_with_scale_and_shift(rows, scale, shift):
    score_B, group_B = (torch.tensor(column) for column in zip(*rows, strict=True))
    moved = ops.grpo(score_B * scale + shift, group_B)
    assert_close(moved, ops.grpo(score_B, group_B), rtol=0, atol=1e-4)  # 1e-6 in the divisor, float32 inputs


REWARD_BT = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 99.0]])
MASK_BT = torch.tensor([[True, True, True], [True, True, False]])


def test_reinforce_pp_by_hand():
    # Returns with gamma 0.5: 1 + (2 + 4/2)/2 = 3, 4, 4 and 3 + 5/2 = 5.5, 5: mean 4.3, squares 3.8, variance 0.95.
    expected = (torch.tensor([[3.0, 4.0, 4.0], [5.5, 5.0, 4.3]]) - 4.3) / 0.95**0.5
    assert_close(ops.reinforce_pp(REWARD_BT, MASK_BT, 0.5), expected, rtol=0, atol=1e-5)


def test_reinforce_pp_carries_the_return_through_tokens_of_others():
    mask_BT = torch.tensor([[True, False, True]])
    got = ops.reinforce_pp(torch.tensor([[1.0, 50.0, 3.0]]), mask_BT, 0.5)
    assert_close(got, torch.tensor([[-(0.5**0.5), 0.0, 0.5**0.5]]), rtol=0, atol=1e-6)  # returns 2.5 and 3


@given(st.lists(st.integers(0, 5), min_size=2, max_size=6), st.floats(0, 1), st.integers(0, 99))
def test_reinforce_pp_is_the_obvious_loop(lengths, gamma, seed):
    reward_BT = torch.randn(len(lengths), 5, generator=torch.Generator().manual_seed(seed))
    mask_BT = torch.arange(5) < torch.tensor(lengths)[:, None]
    returns = [
        [sum(gamma ** (u - t) * float(reward_BT[b, u]) for u in range(t, n)) for t in range(n)]
        for b, n in enumerate(lengths)
    ]
    flat = [value for row in returns for value in row]
    got = ops.reinforce_pp(reward_BT, mask_BT, gamma)
    assert got[~mask_BT].eq(0).all()
    if len(flat) > 1:
        expected = (torch.tensor(flat) - statistics.mean(flat)) / (statistics.variance(flat) + 1e-8) ** 0.5
        assert_close(got[mask_BT], expected, rtol=1e-4, atol=1e-4)  # two nearly equal returns have few digits left
