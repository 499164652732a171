"""One number from a loss per token.

Shapes: B completions, T response tokens.
"""

import torch
from torch import Tensor

from align.ops.masked_mean import masked_mean


def aggregate(x: Tensor, mask: Tensor, how: str = "token_mean", length: int | None = None) -> Tensor:
    """The loss of a batch, a float32 scalar.

    token_mean: mean over all real tokens (DAPO, arXiv 2503.14476, section 3.3)
    sequence_mean_token_mean: mean of each row's mean (GRPO, arXiv 2402.03300, equation 3)
    sequence_mean_token_sum: mean of each row's sum
    fixed_length: mean of each row's sum over `length` (Dr. GRPO, arXiv 2503.20783)

    `length` is the number of tokens a response may have, or the width T; give it where batches are trimmed.
    Rows without a real token count in no mean; a batch without any is 0. A mean over a mini-batch is the sum
    of its micro-batches' means, each times its share of the tokens (token_mean) or non-empty rows (others).

    Raises ValueError for another `how`.
    """
    if how == "token_mean":
        return masked_mean(x, mask)
    count_B = mask.sum(1)
    sum_B = torch.where(mask, x.float(), 0.0).sum(1)
    if how == "sequence_mean_token_mean":
        return masked_mean(sum_B / count_B.clamp(min=1), count_B > 0)
    if how == "sequence_mean_token_sum":
        return masked_mean(sum_B, count_B > 0)
    if how == "fixed_length":
        return masked_mean(sum_B, count_B > 0) / (length or mask.shape[1])
    names = "token_mean, sequence_mean_token_mean, sequence_mean_token_sum, fixed_length"
    raise ValueError(f"how={how!r}: a way to aggregate is one of {names}")
