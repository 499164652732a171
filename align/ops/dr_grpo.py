"""Advantages without a critic: the score less the group's mean.

Shapes: B completions.
"""

from torch import Tensor

from align.ops.groups import groups_of


def dr_grpo(score_B: Tensor, group_B: Tensor) -> Tensor:
    """Score minus the mean of its group, itself included, not divided by a deviation; float32, shape B.

    A NaN score (no opinion) counts in no mean, and its advantage is 0. Liu et al. 2025 (arXiv 2503.20783),
    section 3.2; the loss belongs to it, too: `aggregate` with how=fixed_length.

    Raises ValueError for a group of one: it is its own mean.
    """
    return groups_of(score_B.float(), group_B, "Dr. GRPO").centred_B()[0]
