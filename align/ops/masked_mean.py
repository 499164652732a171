"""Mean over real tokens."""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of `x` where `mask` is True, a float32 scalar; 0 for an empty mask.

    What stands outside the mask is never read: a NaN there changes neither the mean nor the gradient.
    """
    return torch.where(mask, x.float(), 0.0).sum() / mask.sum().clamp(min=1)
