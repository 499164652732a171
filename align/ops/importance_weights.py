"""Correction for samples that another engine drew.

Shapes: B completions, T response tokens.
"""

import torch
from torch import Tensor

# Keeps exp() of a sequence's sum finite, as in verl.
LOG_WEIGHT = 20.0


def importance_weights(logp: Tensor, engine_logp: Tensor, mask: Tensor, level: str, how: str, cap: float) -> Tensor:
    """p_trainer / p_engine of every real token, float32, shape BT, 0 outside the mask, without gradient.

    `logp` is the trainer's of the very policy that the engine sampled from, before any update.
    level: token (each token's own ratio) or sequence (the product over a row's real tokens, on each of them).
    how: truncate (what is above `cap` becomes `cap`) or mask (what is above `cap` becomes 0).
    Truncated importance sampling: Ionides 2008; Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training"; masked: Liu et al. 2025, "When Speed Kills Stability". As in verl, OpenRLHF and slime.

    Raises ValueError for another level, another `how`, or a cap that is not above 0.
    """
    if level not in ("token", "sequence"):
        raise ValueError(f"level={level!r}: importance weights are by token or by sequence")
    if how not in ("truncate", "mask"):
        raise ValueError(f"how={how!r}: weights above the cap are dealt with by truncate or mask")
    if not cap > 0:
        raise ValueError(f"cap={cap}: importance weights need a cap above 0")
    log_weight_BT = torch.where(mask, logp.detach().float() - engine_logp.detach().float(), 0.0)
    if level == "sequence":
        log_weight_BT = log_weight_BT.sum(1, keepdim=True).expand_as(log_weight_BT)
    weight_BT = log_weight_BT.clamp(-LOG_WEIGHT, LOG_WEIGHT).exp()
    kept_BT = weight_BT.clamp(max=cap) if how == "truncate" else torch.where(weight_BT > cap, 0.0, weight_BT)
    return torch.where(mask, kept_BT, 0.0)
