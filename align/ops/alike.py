"""Prompts whose samples teach nothing by comparison.

Shapes: B completions, G groups (completions of one prompt).
"""

import torch
from torch import Tensor


def alike(score_B: Tensor, group_B: Tensor) -> Tensor:
    """True on the completions of a group whose scores are all the same, or fewer than two; boolean, shape B.

    A NaN score (no opinion) is none. Such a group has no advantage within itself (dynamic sampling in DAPO, Yu et al.
    2025, arXiv 2503.14476, section 3.2, replaces it).
    """
    groups_G, index_B = group_B.unique(return_inverse=True)

    def extreme_G(missing: float, how: str) -> Tensor:
        known_B = score_B.where(~score_B.isnan(), missing)
        return score_B.new_full((len(groups_G),), missing).scatter_reduce(0, index_B, known_B, how)

    return (extreme_G(-torch.inf, "amax") <= extreme_G(torch.inf, "amin"))[index_B]
