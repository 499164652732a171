"""DPO per pair. float32; 1e-6 by hand."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align import ops


def test_dpo_by_hand():
    # h = (-1 + 3) - (-2 + 2) = 2 and (-3 + 1) - 0 = -2, times 0.5: sigmoid(1), sigmoid(-1).
    chosen_B, rejected_B = torch.tensor([-1.0, -3.0]), torch.tensor([-3.0, -1.0])
    ref_B = torch.tensor([-2.0, -2.0])
    expected_B = torch.tensor([math.log1p(math.exp(-1)), math.log1p(math.exp(1))])
    assert_close(ops.dpo_loss(chosen_B, rejected_B, ref_B, ref_B, 0.5), expected_B, rtol=0, atol=1e-6)
    smooth_B = 0.9 * expected_B + 0.1 * expected_B.flip(0)
    assert_close(ops.dpo_loss(chosen_B, rejected_B, ref_B, ref_B, 0.5, 0.1), smooth_B, rtol=0, atol=1e-6)


def test_a_policy_that_is_the_reference_has_the_loss_of_a_coin():
    logp_B = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert_close(ops.dpo_loss(*logp_B, *logp_B, beta=0.1), torch.full((5,), math.log(2)), rtol=0, atol=1e-6)


def test_a_hopeless_pair_is_its_difference():
    loss_B = ops.dpo_loss(*(torch.tensor([x]) for x in (-500.0, 0.0, 0.0, 0.0)), beta=2.0)
    assert loss_B.item() == 1000.0


@given(st.lists(st.floats(-20, 0), min_size=4, max_size=4), st.floats(0.01, 2), st.floats(0, 0.5))
def test_dpo_is_the_pairwise_loss_of_implicit_rewards(logp, beta, smoothing):
    chosen_B, rejected_B, ref_chosen_B, ref_rejected_B = (torch.tensor([x]) for x in logp)
    better_B, worse_B = beta * (chosen_B - ref_chosen_B), beta * (rejected_B - ref_rejected_B)
    expected_B = (1 - smoothing) * ops.pairwise_loss(better_B, worse_B)
    expected_B = expected_B + smoothing * ops.pairwise_loss(worse_B, better_B)
    got_B = ops.dpo_loss(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta, smoothing)
    assert_close(got_B, expected_B, rtol=1e-5, atol=1e-4)
