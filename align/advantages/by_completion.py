"""Functions that advantages of whole completions share. Shapes: B completions, T response tokens."""

import torch
from torch import Tensor


def totals(score_B: Tensor, reward_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The sum of each completion's rewards, float32, shape B; NaN where its score is (no opinion)."""
    total_B = torch.where(mask_BT, reward_BT.float(), 0.0).sum(1)
    return torch.where(score_B.isnan(), torch.nan, total_B)


def on_tokens(advantage_B: Tensor, mask_BT: Tensor) -> Tensor:
    """A completion's advantage on each of its real tokens, 0 elsewhere; shape BT."""
    return torch.where(mask_BT, advantage_B[:, None], 0.0)
