"""Advantages without a critic: relative to the group.

Shapes: B completions.
"""

from torch import Tensor

from align.ops.groups import groups_of

# Added to the deviation, as in verl and slime (OpenRLHF: 1e-9).
EPSILON = 1e-6


def grpo(score_B: Tensor, group_B: Tensor) -> Tensor:
    """(score - mean) / (deviation + 1e-6) within each group, float32, shape B.

    The deviation is the unbiased one, as in verl, OpenRLHF and slime. A NaN score (no opinion) counts in neither,
    and its advantage is 0; so is that of a row whose others are all NaN, and of a group of scores alike (`alike`). Sums
    are in float64.
    Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), section 4.1.2.

    Raises ValueError for a group of one: it is its own mean.
    """
    group = groups_of(score_B.double(), group_B, "GRPO")
    centred_B, count_B = group.centred_B()
    variance_B = group.sum_B(centred_B.square()) / (count_B - 1).clamp(min=1)
    return (centred_B / (variance_B.sqrt() + EPSILON)).float()
