"""Advantages from a critic.

Shapes: B completions, T response tokens.
"""

from dataclasses import MISSING

import torch
from torch import Tensor

from align import ops
from align.config.fields import number, section


@section("advantage")
class GAE:
    """Generalised advantage estimation, whitened over the batch's real tokens."""

    gamma: float = number(MISSING, low=0, high=1)
    """Discount a token; 1 for responses that end."""
    lam: float = number(MISSING, low=0, high=1)
    """Weight of far rewards: 1 sums them all, 0 trusts the critic's next value."""
    whiten: bool = True
    """Shift and scale advantages to mean 0 and variance 1."""

    needs_critic = True
    min_samples = 1

    def __call__(
        self, score_B: Tensor, reward_BT: Tensor, value_BT: Tensor | None, mask_BT: Tensor, group_B: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Advantage and return of every real token, float32, shape BT, 0 outside the mask.

        A row whose score is NaN (no opinion) has no part in the whitening, and advantage 0. Its return is
        that of its KL penalty alone: leave the row out of the critic's loss.
        """
        assert value_BT is not None, "GAE needs the values of a critic"
        advantage_BT, return_BT = ops.gae(reward_BT, value_BT, mask_BT, self.gamma, self.lam)
        counted_BT = mask_BT & ~score_B.isnan()[:, None]
        if self.whiten:
            return ops.whiten(advantage_BT, counted_BT), return_BT
        return torch.where(counted_BT, advantage_BT, 0.0), return_BT
