"""Advantages from the whole batch.

Shapes: B completions, T response tokens.
"""

from dataclasses import MISSING

from torch import Tensor

from align import ops
from align.config.fields import number, section


@section("advantage")
class ReinforcePP:
    """REINFORCE++: returns whitened over the batch's real tokens; no critic, one sample a prompt will do.

    Without a baseline its gradients are noisier than those of the other advantages: it takes a lower learning rate, on
    the tiny experiment a third (docs/log.md).
    """

    gamma: float = number(MISSING, low=0, high=1)
    """Discount a token; 1 for responses that end."""

    needs_critic = False
    min_samples = 1

    def __call__(
        self, score_B: Tensor, reward_BT: Tensor, value_BT: Tensor | None, mask_BT: Tensor, group_B: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """An advantage a token, float32, shape BT, 0 outside the mask, and no return (Hu et al. 2025, 2501.03262).

        The rewards hold the KL penalty token by token (ppo.kl_in=reward), as in the paper. A row whose score is
        NaN (no opinion) has no part in the whitening, and advantage 0.
        """
        return ops.reinforce_pp(reward_BT, mask_BT & ~score_B.isnan()[:, None], self.gamma), None
