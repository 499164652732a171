"""Advantages from the other samples of a prompt.

Shapes: B completions, T response tokens.
"""

from torch import Tensor

from align import ops
from align.advantages.by_completion import on_tokens, totals
from align.config.fields import section


@section("advantage")
class RLOO:
    """REINFORCE with a leave-one-out baseline: no critic, two samples a prompt or more."""

    whiten: bool = False
    """Shift and scale the completions' advantages to mean 0 and variance 1."""

    needs_critic = False
    min_samples = 2

    def __call__(
        self, score_B: Tensor, reward_BT: Tensor, value_BT: Tensor | None, mask_BT: Tensor, group_B: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """One advantage a completion on all its real tokens, float32, shape BT, and no return.

        A completion counts with the sum of its rewards: score and KL penalty (Ahmadian et al. 2024,
        arXiv 2402.14740). A row whose score is NaN has advantage 0 and counts in no mean.

        Raises ValueError for a group of one.
        """
        advantage_B = ops.rloo(totals(score_B, reward_BT, mask_BT), group_B)
        if self.whiten:
            advantage_B = ops.whiten(advantage_B, ~score_B.isnan())
        return on_tokens(advantage_B, mask_BT), None
