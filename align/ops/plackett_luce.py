"""The loss of a reward model on rankings of several completions.

Shapes: B rankings, K completions.
"""

import torch
from torch import Tensor


def plackett_luce(score_BK: Tensor, rank_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """-log p(ranking) of each row in nats, float32, shape B; a lower rank is better, and equal ranks are ties.

    Completions are chosen one after another, the best first, each with the softmax of those left (Plackett
    1975; Luce 1959): for two completions that is -log sigmoid(chosen - rejected). Completions of one rank are one stage
    by Efron's approximation (Efron 1977, "The efficiency of Cox's likelihood function for censored data", whose partial
    likelihood this is): at the l-th of d tied, counted from 0, the weight of all d still left is (1 - l / d) of theirs.
    So ties pull their scores together. `mask_BK` is True on completions that are there; a row of none gives 0.
    """
    count = score_BK.shape[1]
    score_BK = score_BK.float().masked_fill(~mask_BK, 0)
    there_BKK = mask_BK[:, None, :] & mask_BK[:, :, None]
    itself = torch.eye(count, dtype=torch.bool, device=score_BK.device)
    tied_BKK = itself | (there_BKK & (rank_BK[:, None, :] == rank_BK[:, :, None]))
    left_BKK = tied_BKK | (there_BKK & (rank_BK[:, None, :] > rank_BK[:, :, None]))
    earlier_BK = tied_BKK.tril(-1).sum(2) / tied_BKK.sum(2)
    weight_BKK = left_BKK.float() - earlier_BK[..., None] * tied_BKK
    other_BKK = score_BK[:, None, :].expand_as(left_BKK).masked_fill(~left_BKK, float("-inf"))
    log_weight_BK = torch.logsumexp(other_BKK + weight_BKK.clamp(min=1e-30).log(), 2)
    return ((log_weight_BK - score_BK) * mask_BK).sum(1)
