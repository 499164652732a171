"""Means over the scores of one prompt, which advantages without a critic share.

Shapes: B completions, G groups (completions of one prompt).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from align.ops.alike import alike


@dataclass
class Groups:
    """Groups of two completions or more; a NaN score (no opinion) counts in no sum."""

    index_B: Tensor
    known_B: Tensor
    known_score_B: Tensor
    """0 where there is no opinion, and in a group whose scores are alike: what rounding leaves is no signal."""
    groups: int

    def sum_B(self, x_B: Tensor) -> Tensor:
        """The sum of `x` over each completion's group."""
        return x_B.new_zeros(self.groups).index_add(0, self.index_B, x_B)[self.index_B]

    def centred_B(self) -> tuple[Tensor, Tensor]:
        """Score minus the group's mean, 0 without an opinion; and how many opinions the group has."""
        count_B = self.sum_B(self.known_B.to(self.known_score_B.dtype))
        mean_B = self.sum_B(self.known_score_B) / count_B.clamp(min=1)
        return torch.where(self.known_B, self.known_score_B - mean_B, 0.0), count_B


def groups_of(score_B: Tensor, group_B: Tensor, needs: str) -> Groups:
    """The groups; raises ValueError for a group of one, naming what `needs` others."""
    groups_G, index_B, size_G = group_B.unique(return_inverse=True, return_counts=True)
    if (size_G < 2).any():
        alone = groups_G[size_G < 2][0].item()
        raise ValueError(f"group {alone} has one completion: {needs} needs two or more of each prompt")
    known_B = ~score_B.isnan()
    counts_B = known_B & ~alike(score_B, group_B)
    return Groups(index_B, known_B, torch.where(counts_B, score_B, 0.0), len(groups_G))
