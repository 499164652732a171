"""Mean 0 and variance 1 over real tokens."""

import torch
from torch import Tensor

from align.ops.masked_mean import masked_mean

# As in lm-human-preferences `utils/core.py`: keeps a constant input finite.
EPSILON = 1e-8


def whiten(x: Tensor, mask: Tensor, unbiased: bool = True, shift_mean: bool = True) -> Tensor:
    """`x` with mean 0 and variance 1 over the mask, float32, any shape, 0 outside the mask.

    unbiased: divide the sum of squares by n - 1 (TRL, verl), else by n (lm-human-preferences, OpenRLHF).
    shift_mean=False keeps the mean, as for rewards. With fewer than two real tokens there is no variance: it
    is taken for 1. Ziegler et al. 2019 (arXiv 1909.08593), and its code's `whiten`.
    """
    count = mask.sum()
    mean = masked_mean(x, mask)
    centred = torch.where(mask, x.float() - mean, 0.0)
    squares = centred.square().sum()
    variance = squares / (count - 1 if unbiased else count).clamp(min=1)
    scale = torch.where(count < 2, 1.0, (variance + EPSILON).rsqrt())
    return torch.where(mask, centred * scale + (0.0 if shift_mean else mean), 0.0)
