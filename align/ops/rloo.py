"""Advantages without a critic: leave one out.

Shapes: B completions, G groups (completions of one prompt).
"""

import torch
from torch import Tensor


def rloo(score_B: Tensor, group_B: Tensor) -> Tensor:
    """Each score minus the mean score of the others of its group, float32, shape B.

    A NaN score (no opinion) counts in no mean, and its advantage is 0; so is that of a row whose others are
    all NaN. Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; Ahmadian et al. 2024,
    arXiv 2402.14740.

    Raises ValueError for a group of one: it has no others.
    """
    groups_G, index_B, size_G = group_B.unique(return_inverse=True, return_counts=True)
    if (size_G < 2).any():
        alone = groups_G[size_G < 2][0].item()
        raise ValueError(f"group {alone} has one completion: leave-one-out needs two or more of each prompt")
    score_B = score_B.float()
    known_B = ~score_B.isnan()
    known_score_B = torch.where(known_B, score_B, 0.0)
    zero_G = score_B.new_zeros(len(groups_G))
    others_B = zero_G.index_add(0, index_B, known_B.float())[index_B] - known_B.float()
    others_sum_B = zero_G.index_add(0, index_B, known_score_B)[index_B] - known_score_B
    advantage_B = known_score_B - others_sum_B / others_B.clamp(min=1)
    return torch.where(known_B & (others_B > 0), advantage_B, 0.0)
