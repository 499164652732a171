"""Rewards per token, from a score per completion and the distance to the reference.

Shapes: B completions, T response tokens.
"""

import torch
from torch import Tensor

from align.ops.kl import kl


def shape_rewards(
    score_B: Tensor,
    logp: Tensor,
    ref_logp: Tensor,
    mask: Tensor,
    kl_coef: float,
    clip: float | None = None,
    estimator: str = "k1",
) -> Tensor:
    """-kl_coef KL on every real token, plus the score on the last one; float32, shape BT.

    KL is that of `ops.kl`, by default k1 = logp - ref_logp.
    The score is cut to [-clip, clip] if `clip` is given. A NaN score (no opinion) counts as 0. A row without
    a real token stays 0, as does all padding. Ziegler et al. 2019 (arXiv 1909.08593), equation 2, with the
    place of the score as in verl, OpenRLHF and NeMo-RL: the last response token (TRL 1.12: one later).
    """
    reward_BT = torch.where(mask, -kl_coef * kl(logp, ref_logp, estimator), 0.0)
    score_B = score_B.float().nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    if clip is not None:
        score_B = score_B.clamp(-clip, clip)
    last_BT = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return reward_BT + torch.where(last_BT, score_B[:, None], 0.0)
