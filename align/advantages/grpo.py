"""Advantages relative to the samples of a prompt.

Shapes: B completions, T response tokens.
"""

from torch import Tensor

from align import ops
from align.advantages.by_completion import on_tokens, totals
from align.config.fields import section


@section("advantage")
class GRPO:
    """Group relative policy optimisation: no critic, two samples a prompt or more."""

    needs_critic = False
    min_samples = 2

    def __call__(
        self, score_B: Tensor, reward_BT: Tensor, value_BT: Tensor | None, mask_BT: Tensor, group_B: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """One advantage a completion on all its real tokens, float32, shape BT, and no return.

        (total - mean) / deviation within the group (Shao et al. 2024, arXiv 2402.03300), where a completion's
        total is the sum of its rewards. In the paper the KL stands in the loss (ppo.kl_in=loss), and the total
        is the score alone. A row whose score is NaN has advantage 0 and counts in no mean.

        Raises ValueError for a group of one.
        """
        return on_tokens(ops.grpo(totals(score_B, reward_BT, mask_BT), group_B), mask_BT), None
