"""The policy's losses as the PPO loop calls them. float32; 1e-6 for numbers near 1."""

import math

import pytest
import torch
from torch.testing import assert_close

from align import ops
from align.policy_losses.clip import Clip
from align.policy_losses.clip_higher import ClipHigher
from align.policy_losses.dual_clip import DualClip
from align.policy_losses.gspo import GSPO

OLD_BT = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0]])
RATIO_BT = torch.tensor([[1.5, 0.5, 4.0], [1.5, 10.0, 1.0]])
ADVANTAGE_BT = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 0.0]])
MASK_BT = torch.tensor([[True, True, True], [True, True, False]])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (Clip(0.2), [[-1.2, 0.8, -1.2], [1.5, 10.0, 0.0]]),
        (ClipHigher(0.2, 0.28), [[-1.28, 0.8, -1.28], [1.5, 10.0, 0.0]]),
        (DualClip(0.2, 3.0), [[-1.2, 0.8, -1.2], [1.5, 3.0, 0.0]]),
        (DualClip(0.2, 3.0, clip_high=0.28), [[-1.28, 0.8, -1.28], [1.5, 3.0, 0.0]]),
    ],
)
def test_losses_of_tokens_by_hand(loss, expected):
    got_BT = loss(OLD_BT + RATIO_BT.log(), OLD_BT, ADVANTAGE_BT, MASK_BT)
    assert_close(got_BT, torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, math.nan])
def test_a_dual_clip_not_above_one_is_refused(dual_clip):
    with pytest.raises(ValueError, match="dual_clip"):
        DualClip(0.2, dual_clip)


@pytest.mark.parametrize("loss", [ClipHigher, GSPO])
def test_an_upper_clip_not_above_zero_is_refused(loss):
    with pytest.raises(ValueError, match="clip_high"):
        loss(0.2, 0.0)


def test_gspo_by_hand():
    """Ratios of the rows: cube root of 1.5 * 0.5 * 4 = 3, and root of 1.5 * 10 = 15; the third token is padding."""
    advantage_BT = torch.tensor([[1.0] * 3, [-1.0] * 3])
    logp_BT = (OLD_BT + RATIO_BT.log()).requires_grad_()
    loss_BT = GSPO(0.2, 0.3)(logp_BT, OLD_BT, advantage_BT, MASK_BT)
    assert_close(loss_BT[0], torch.full((3,), -1.3), rtol=0, atol=1e-6)
    assert_close(loss_BT[1, :2], torch.full((2,), 15**0.5), rtol=0, atol=1e-5)
    loss_BT[MASK_BT].sum().backward()
    assert_close(logp_BT.grad, torch.tensor([[0.0] * 3, [15**0.5, 15**0.5, 0.0]]), rtol=0, atol=1e-5)


def test_gspo_has_the_gradient_of_the_ratio_of_the_sequence():
    """Against the paper's sequence form, written with autograd: -A exp(mean(logp - old)), mean over rows."""
    generator = torch.Generator().manual_seed(0)
    old_BT = -torch.rand(4, 5, generator=generator)
    mask_BT = torch.arange(5) < torch.tensor([5, 3, 1, 4])[:, None]
    advantage_B1 = torch.randn(4, 1, generator=generator)
    logp_BT = (old_BT + 0.05 * torch.randn(4, 5, generator=generator)).requires_grad_()
    ratio_B = (torch.where(mask_BT, logp_BT - old_BT, 0.0).sum(1) / mask_BT.sum(1)).exp()
    clipped_B = ratio_B.clamp(0.99, 1.01)
    (paper,) = torch.autograd.grad((-advantage_B1[:, 0] * ratio_B).max(-advantage_B1[:, 0] * clipped_B).mean(), logp_BT)
    loss_BT = GSPO(0.01, 0.01)(logp_BT, old_BT, advantage_B1.expand(4, 5), mask_BT)
    (ours,) = torch.autograd.grad(ops.aggregate(loss_BT, mask_BT, "sequence_mean_token_mean"), logp_BT)
    assert paper.abs().max() > 0.05 and (paper[mask_BT] == 0).any()
    assert_close(ours, paper, rtol=0, atol=1e-6)
