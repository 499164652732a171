"""Advantages as the PPO stage calls them. float32; 1e-6 for a few sums of numbers near 1."""

import math

import pytest
import torch
from torch.testing import assert_close

from align import ops
from align.advantages.dr_grpo import DrGRPO
from align.advantages.gae import GAE
from align.advantages.grpo import GRPO
from align.advantages.reinforce_pp import ReinforcePP
from align.advantages.rloo import RLOO

NAN = math.nan
MASK_BT = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [True, True, True]])
GROUP_B = torch.tensor([0, 0, 1, 1])
REWARD_BT, VALUE_BT = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
SCORE_B = torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_gae_without_whitening_is_the_formula():
    got = GAE(gamma=0.9, lam=0.8, whiten=False)(SCORE_B, REWARD_BT, VALUE_BT, MASK_BT, GROUP_B)
    for ours, expected in zip(got, ops.gae(REWARD_BT, VALUE_BT, MASK_BT, 0.9, 0.8), strict=True):
        assert torch.equal(ours, expected)


def test_gae_whitens_advantages_and_not_returns():
    advantage_BT, return_BT = GAE(gamma=1.0, lam=0.95)(SCORE_B, REWARD_BT, VALUE_BT, MASK_BT, GROUP_B)
    raw_BT, raw_return_BT = ops.gae(REWARD_BT, VALUE_BT, MASK_BT, 1.0, 0.95)
    assert torch.equal(return_BT, raw_return_BT)
    assert torch.equal(advantage_BT, ops.whiten(raw_BT, MASK_BT))
    assert_close(advantage_BT[MASK_BT].var(), torch.tensor(1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("whiten", [True, False])
def test_gae_leaves_a_row_without_opinion_out(whiten):
    advantage = GAE(gamma=1.0, lam=0.95, whiten=whiten)
    score_B = torch.tensor([1.0, NAN, 3.0, 4.0])
    advantage_BT, return_BT = advantage(score_B, REWARD_BT, VALUE_BT, MASK_BT, GROUP_B)
    assert advantage_BT[1].tolist() == [0.0] * 3 and return_BT.isfinite().all()
    kept = torch.tensor([0, 2, 3])
    alone_BT, _ = advantage(score_B[kept], REWARD_BT[kept], VALUE_BT[kept], MASK_BT[kept], GROUP_B[kept])
    assert_close(advantage_BT[kept], alone_BT, rtol=0, atol=1e-6)


def test_rloo_by_hand():
    # Sums over real tokens: 6, 3 (the 9 is padding), 5, 1.
    reward_BT = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 9.0], [5.0, 9.0, 9.0], [0.0, 0.0, 1.0]])
    advantage_BT, return_BT = RLOO()(SCORE_B, reward_BT, None, MASK_BT, GROUP_B)
    assert return_BT is None
    expected = [[3.0, 3.0, 3.0], [-3.0, -3.0, 0.0], [4.0, 0.0, 0.0], [-4.0, -4.0, -4.0]]
    assert advantage_BT.tolist() == expected


def test_rloo_leaves_a_row_without_opinion_out_though_it_has_a_kl_penalty():
    reward_BT = torch.tensor([[1.0], [5.0], [3.0]])
    mask_BT, group_B = torch.ones(3, 1, dtype=torch.bool), torch.zeros(3, dtype=torch.long)
    advantage_BT, _ = RLOO()(torch.tensor([0.0, NAN, 0.0]), reward_BT, None, mask_BT, group_B)
    assert advantage_BT.tolist() == [[-2.0], [0.0], [2.0]]


def test_rloo_whitens_completions_not_tokens():
    # Lengths must not weigh: a variance over completions of one value each is 1.
    advantage_BT, _ = RLOO(whiten=True)(SCORE_B, REWARD_BT, None, MASK_BT, GROUP_B)
    first_B = advantage_BT[:, 0]
    assert_close(first_B.var(), torch.tensor(1.0), rtol=0, atol=1e-6)
    assert_close(first_B.mean(), torch.tensor(0.0), rtol=0, atol=1e-6)


def test_rloo_refuses_one_sample_a_prompt():
    with pytest.raises(ValueError, match="one completion"):
        RLOO()(SCORE_B, REWARD_BT, None, MASK_BT, torch.arange(4))


# Sums over real tokens: 6, 3 (the 9 is padding), 5, 1.
TOTALS_BT = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 9.0], [5.0, 9.0, 9.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("advantage", "expected_B"),
    [(DrGRPO(), [1.5, -1.5, 2.0, -2.0]), (GRPO(), [0.5**0.5, -(0.5**0.5), 0.5**0.5, -(0.5**0.5)])],
)
def test_group_advantages_by_hand(advantage, expected_B):
    advantage_BT, return_BT = advantage(SCORE_B, TOTALS_BT, None, MASK_BT, GROUP_B)
    assert return_BT is None
    expected_BT = torch.where(MASK_BT, torch.tensor(expected_B)[:, None], 0.0)
    assert_close(advantage_BT, expected_BT, rtol=0, atol=1e-6)


@pytest.mark.parametrize("advantage", [GRPO(), DrGRPO()])
def test_group_advantages_leave_a_row_without_opinion_out_though_it_has_a_kl_penalty(advantage):
    reward_BT = torch.tensor([[1.0], [5.0], [3.0]])
    mask_BT, group_B = torch.ones(3, 1, dtype=torch.bool), torch.zeros(3, dtype=torch.long)
    advantage_BT, _ = advantage(torch.tensor([0.0, NAN, 0.0]), reward_BT, None, mask_BT, group_B)
    kept = torch.tensor([0, 2])
    alone_BT, _ = advantage(torch.zeros(2), reward_BT[kept], None, mask_BT[kept], group_B[kept])
    assert advantage_BT[1].item() == 0 and alone_BT[0].item() < 0
    assert torch.equal(advantage_BT[kept], alone_BT)


@pytest.mark.parametrize("advantage", [GRPO(), DrGRPO()])
def test_group_advantages_refuse_one_sample_a_prompt(advantage):
    with pytest.raises(ValueError, match="one completion"):
        advantage(SCORE_B, REWARD_BT, None, MASK_BT, torch.arange(4))


def test_reinforce_pp_whitens_returns_and_leaves_a_row_without_opinion_out():
    advantage_BT, return_BT = ReinforcePP(0.9)(SCORE_B, REWARD_BT, None, MASK_BT, torch.arange(4))
    assert return_BT is None and torch.equal(advantage_BT, ops.reinforce_pp(REWARD_BT, MASK_BT, 0.9))
    some_BT, _ = ReinforcePP(0.9)(torch.tensor([1.0, NAN, 3.0, 4.0]), REWARD_BT, None, MASK_BT, torch.arange(4))
    kept = torch.tensor([0, 2, 3])
    assert some_BT[1].tolist() == [0.0] * 3
    assert_close(some_BT[kept], ops.reinforce_pp(REWARD_BT[kept], MASK_BT[kept], 0.9), rtol=0, atol=1e-6)


def test_each_says_what_it_needs():
    assert (GAE.needs_critic, GAE.min_samples) == (True, 1)
    for advantage in (RLOO, GRPO, DrGRPO):
        assert (advantage.needs_critic, advantage.min_samples) == (False, 2)
    assert (ReinforcePP.needs_critic, ReinforcePP.min_samples) == (False, 1)
