"""One number from a loss per token.

Shapes: B completions, T response tokens.
"""

import torch
from torch import Tensor

HOW = ("token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "fixed_length")


def aggregate(
    x: Tensor, mask: Tensor, how: str = "token_mean", length: int | None = None, total: int | None = None
) -> Tensor:
    """The loss of a batch, a float32 scalar.

    token_mean: mean over all real tokens (DAPO, arXiv 2503.14476, section 3.3)
    sequence_mean_token_mean: mean of each row's mean (GRPO, arXiv 2402.03300, equation 3)
    sequence_mean_token_sum: mean of each row's sum
    fixed_length: mean of each row's sum over `length` (Dr. GRPO, arXiv 2503.20783)

    `length` is the number of tokens a response may have, or the width T; give it where batches are trimmed.
    Rows without a real token count in no mean; a batch without any is 0. For a micro-batch, `total` is what
    `counted` says of the mini-batch's whole mask: the aggregates of its micro-batches then add up to its own.

    Raises ValueError for another `how`.
    """
    if how not in HOW:
        raise ValueError(f"how={how!r}: a way to aggregate is one of {', '.join(HOW)}")
    x_BT = torch.where(mask, x.float(), 0.0)
    if how == "sequence_mean_token_mean":
        x_BT = x_BT / mask.sum(1, keepdim=True).clamp(min=1)
    mean = x_BT.sum() / max(counted(mask, how) if total is None else total, 1)
    return mean / (length or mask.shape[1]) if how == "fixed_length" else mean


def counted(mask: Tensor, how: str = "token_mean") -> int:
    """Count what an aggregate is a mean over: real tokens (token_mean), or rows with a real token (the others)."""
    return int(mask.sum() if how == "token_mean" else mask.any(1).sum())
