"""Rewards per token. float32; sums of two terms, so 1e-6."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align import ops

MASK_BT = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])
LOGP_BT = torch.tensor([[-1.0, -2.0, -3.0, 9.0], [-1.0, 9.0, 9.0, 9.0], [9.0] * 4])
REF_LOGP_BT = torch.tensor([[-1.5, -1.0, -3.0, 7.0], [-3.0, 7.0, 7.0, 7.0], [7.0] * 4])


def shape(score_B, **more):
    return ops.shape_rewards(torch.tensor(score_B), LOGP_BT, REF_LOGP_BT, MASK_BT, kl_coef=0.1, **more)


def test_rewards_by_hand():
    expected = torch.tensor([[-0.05, 0.1, 2.0, 0.0], [-0.2 - 1.0, 0.0, 0.0, 0.0], [0.0] * 4])
    assert_close(shape([2.0, -1.0, 5.0]), expected, rtol=0, atol=1e-6)


def test_another_estimator_is_priced():
    # k2 = (log p/q)^2 / 2 of 0.5, -1, 0 and of 2.
    expected = torch.tensor([[-0.0125, -0.05, 2.0, 0.0], [-0.2 - 1.0, 0.0, 0.0, 0.0], [0.0] * 4])
    assert_close(shape([2.0, -1.0, 5.0], estimator="k2"), expected, rtol=0, atol=1e-6)


def test_score_lands_on_the_last_response_token():
    with_score, without = shape([3.0, 3.0, 3.0]), shape([0.0, 0.0, 0.0])
    expected = torch.tensor([[0.0, 0.0, 3.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0] * 4])
    assert_close(with_score - without, expected, rtol=0, atol=1e-6)


def test_score_lands_behind_a_hole_in_the_mask():
    mask_BT = torch.tensor([[True, False, True, False]])
    zero_BT = torch.zeros(1, 4)
    assert ops.shape_rewards(torch.tensor([1.0]), zero_BT, zero_BT, mask_BT, 0.1).tolist() == [[0, 0, 1, 0]]


def test_a_row_without_tokens_stays_zero():
    assert shape([2.0, -1.0, 5.0])[2].tolist() == [0.0] * 4


def test_the_score_is_clipped_and_the_penalty_is_not():
    assert_close(shape([9.0, -9.0, 0.0], clip=1.5), shape([1.5, -1.5, 0.0]), rtol=0, atol=0)
    far = ops.shape_rewards(torch.zeros(1), torch.zeros(1, 1), torch.full((1, 1), 99.0), MASK_BT[:1, :1], 1.0, 1.5)
    assert far.item() == 99.0


def test_no_opinion_counts_as_zero():
    assert torch.equal(shape([float("nan"), 1.0, 0.0]), shape([0.0, 1.0, 0.0]))


def test_nan_in_the_padding_does_not_leak():
    logp_BT = LOGP_BT.masked_fill(~MASK_BT, torch.nan)
    rewards = ops.shape_rewards(torch.tensor([2.0, -1.0, 5.0]), logp_BT, REF_LOGP_BT, MASK_BT, 0.1)
    assert torch.equal(rewards, shape([2.0, -1.0, 5.0]))


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_rewards_sum_to_the_score_minus_the_kl(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    score_B = torch.randn(len(lengths), generator=generator)
    logp_BT, ref_logp_BT = torch.randn(2, len(lengths), 6, generator=generator)
    mask_BT = torch.arange(6) < torch.tensor(lengths)[:, None]
    reward_BT = ops.shape_rewards(score_B, logp_BT, ref_logp_BT, mask_BT, 0.3)
    for b, length in enumerate(lengths):
        kl = sum(float(logp_BT[b, t] - ref_logp_BT[b, t]) for t in range(length))
        expected = float(score_B[b]) - 0.3 * kl if length else 0.0
        assert abs(float(reward_BT[b].sum()) - expected) < 1e-5  # a sum of 7 float32 of size 1
