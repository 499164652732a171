"""Metrics of a PPO step, under the names of TRL's PPO, since dashboards know them.

A score is what the reward gives, a reward what PPO optimises, a KL that to the reference (docs/reference/figures.md).
`objective/kl` is k1 in nats a completion. Shapes: B completions, T response tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from align import ops
from align.errors import AlignError
from align.ppo.options import PPOOptions
from align.types import Experience, Rollout, Scored, Scores

FAR = 0.1
"""A probability of the engine that differs by more than this share from the trainer's is counted."""


class Average:
    """Weighted means of metrics by name; each name has its own weights."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, metrics: dict[str, float], weight: float) -> None:
        for name, value in metrics.items():
            total, weights = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = total + float(value) * weight, weights + weight

    def means(self) -> dict[str, float]:
        return {name: total / weight for name, (total, weight) in self.sums.items() if weight}


def of_rollout(
    rollout: Rollout, old: Scores, scored: Scored, reward_BT: Tensor, return_BT: Tensor | None, mask_BT: Tensor
) -> dict[str, float]:
    """Score, reward, KL, length and endings of one rollout batch, and what the critic knew of it.

    `objective/entropy` is the surprise of the samples, −log p a sequence, as TRL has it.
    """
    real_BT = rollout.response_mask_BT
    kl_B = (ops.kl(old.logp_BT, old.ref_logp_BT, "k1") * real_BT).sum(1)
    judged_B = ~scored.score_B.isnan()
    score_B, reward_B = scored.score_B[judged_B], reward_BT.sum(1)[judged_B]
    metrics = {
        "objective/kl": float(kl_B.mean()),
        "objective/entropy": float(-(old.logp_BT * real_BT).sum(1).mean()),
        "objective/unscored": float((~judged_B).sum()),
        "val/num_eos_tokens": float(rollout.finished_B.sum()),
        "val/finished": float(rollout.finished_B.float().mean()),
        "val/length": float(real_BT.sum(1).float().mean()),
        **engine_gap(rollout, old),
    }
    if return_BT is not None:
        metrics["val/explained_variance"] = explained_variance(old.value_BT[mask_BT], return_BT[mask_BT])
    if judged_B.any():
        metrics |= {
            "objective/scores": float(score_B.mean()),
            "objective/non_score_reward": float((reward_B - score_B).mean()),
            "objective/rlhf_reward": float(reward_B.mean()),
        }
    for name, term_B in scored.terms.items():
        known = term_B[~term_B.isnan()]
        if len(known):
            metrics |= {
                f"rewards/{name}/mean": float(known.mean()),
                f"rewards/{name}/std": float(known.std(correction=0)),
            }
    return metrics


def engine_gap(rollout: Rollout, old: Scores) -> dict[str, float]:
    """Gap between the engine's log-probabilities and the trainer's: largest, mean, share of tokens beyond 10 %.

    Nothing where the trainer took the engine's.
    """
    if old.logp_BT is rollout.logp_BT:
        return {}
    gap = (rollout.logp_BT - old.logp_BT)[rollout.response_mask_BT]
    if not gap.numel():
        gap = gap.new_zeros(1)
    return {
        "val/engine_logp_gap": float(gap.abs().max()),
        "val/engine_logp_gap_mean": float(gap.abs().mean()),
        "val/engine_logp_gap_share": float((gap.expm1().abs() > FAR).float().mean()),
    }


def of_weights(weight_BT: Tensor | None, mask_BT: Tensor) -> dict[str, float]:
    """Mean and largest importance weight of the tokens that train."""
    if weight_BT is None or not mask_BT.any():
        return {}
    weights = weight_BT[mask_BT]
    return {"val/importance_weight": float(weights.mean()), "val/importance_weight_max": float(weights.max())}


def of_update(new: Scores, micro: Experience, old_logp_BT: Tensor, options: PPOOptions) -> dict[str, float]:
    """Ratios, clipping and entropy of one micro-batch, as means over its tokens.

    `policy/clipfrac_avg` is the share of ratios beyond 1 ± ppo.clip, whatever the policy's loss.
    """
    mask_BT = micro.rollout.loss_mask_BT
    if not mask_BT.any():
        return {}
    metrics = {}
    with torch.no_grad():
        if new.logp_BT is not None:
            log_ratio = (new.logp_BT - old_logp_BT)[mask_BT]
            ratio = log_ratio.exp()
            metrics |= {
                "policy/approxkl_avg": 0.5 * log_ratio.square().mean(),
                "policy/clipfrac_avg": ((ratio - 1).abs() > options.clip).float().mean(),
                "policy/entropy_avg": new.entropy_BT[mask_BT].mean(),
                "val/ratio": ratio.mean(),
                "val/ratio_var": (ratio - 1).square().mean(),
            }
        if new.value_BT is not None:
            moved = (new.value_BT - micro.old.value_BT)[mask_BT].abs()
            metrics["val/clipfrac_avg"] = (moved > options.value_clip).float().mean()
    return {name: float(value) for name, value in metrics.items()}


def check(metrics: dict[str, float], step: int) -> None:
    """Raise AlignError for the first figure of step `step` that is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise AlignError(
                f"PPO step {step}: {name} is {value}\n  use a lower actor.learning_rate or ppo.max_grad_norm"
            )


def explained_variance(value: Tensor, return_: Tensor) -> float:
    """1 − Var(return − value) / Var(return): 1 is a perfect critic, 0 one that knows nothing."""
    variance = float(return_.var(correction=0)) if return_.numel() else 0.0
    return 1 - float((return_ - value).var(correction=0)) / variance if variance > 1e-8 else 0.0
