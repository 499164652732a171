"""Advantages without a critic: leave one out.

Shapes: B completions.
"""

import torch
from torch import Tensor

from align.ops.groups import groups_of


def rloo(score_B: Tensor, group_B: Tensor) -> Tensor:
    """Each score minus the mean score of the others of its group, float32, shape B.

    A NaN score (no opinion) counts in no mean, and its advantage is 0; so is that of a row whose others are
    all NaN. Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; Ahmadian et al. 2024,
    arXiv 2402.14740.

    Raises ValueError for a group of one: it has no others.
    """
    group = groups_of(score_B.float(), group_B, "leave-one-out")
    known_B = group.known_B.float()
    others_B = group.sum_B(known_B) - known_B
    others_sum_B = group.sum_B(group.known_score_B) - group.known_score_B
    advantage_B = group.known_score_B - others_sum_B / others_B.clamp(min=1)
    return torch.where(group.known_B & (others_B > 0), advantage_B, 0.0)
