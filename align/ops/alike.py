"""Prompts whose samples teach nothing by comparison.

Shapes: B completions, G groups (completions of one prompt).
"""

import torch
from torch import Tensor

ROUNDING = 1e-6
"""Of a score's size, and of 1 below it: float32 keeps 6e-8, a mean over tokens or samples loses some of it."""


def alike(score_B: Tensor, group_B: Tensor) -> Tensor:
    """True on the completions of a group whose scores are all the same, or fewer than two; boolean, shape B.

    Scores that differ by rounding alone (ROUNDING of their size) are the same: equal completions of a batch may be
    computed in unlike micro-batches.

    A NaN score (no opinion) is none. Such a group has no advantage within itself (dynamic sampling in DAPO, Yu et al.
    2025, arXiv 2503.14476, section 3.2, replaces it).
    """
    groups_G, index_B = group_B.unique(return_inverse=True)

    def extreme_G(missing: float, how: str) -> Tensor:
        known_B = score_B.where(~score_B.isnan(), missing)
        return score_B.new_full((len(groups_G),), missing).scatter_reduce(0, index_B, known_B, how)

    most_G, least_G = extreme_G(-torch.inf, "amax"), extreme_G(torch.inf, "amin")
    slack_G = ROUNDING * torch.maximum(most_G.abs(), least_G.abs()).nan_to_num(posinf=0.0).clamp(min=1.0)
    return (most_G <= least_G + slack_G)[index_B]
