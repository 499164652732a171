"""Advantages relative to the samples of a prompt, without GRPO's two biases.

Shapes: B completions, T response tokens.
"""

from torch import Tensor

from align import ops
from align.advantages.by_completion import on_tokens, totals
from align.config.fields import section


@section("advantage")
class DrGRPO:
    """GRPO done right: no critic, two samples a prompt or more, no division by a deviation."""

    needs_critic = False
    min_samples = 2

    def __call__(
        self, score_B: Tensor, reward_BT: Tensor, value_BT: Tensor | None, mask_BT: Tensor, group_B: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """One advantage a completion on all its real tokens, float32, shape BT, and no return.

        Total of the rewards minus the group's mean (Liu et al. 2025, arXiv 2503.20783). The paper's other half is
        ppo.loss_aggregation=fixed_length; its KL, if any, stands in the loss (ppo.kl_in=loss). A row whose score
        is NaN has advantage 0 and counts in no mean.

        Raises ValueError for a group of one.
        """
        return on_tokens(ops.dr_grpo(totals(score_B, reward_BT, mask_BT), group_B), mask_BT), None
