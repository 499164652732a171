"""Figures of a set of completions: score, KL, length, endings."""

from __future__ import annotations

from align import ops
from align.types import Rollout, Scored, Scores


def judge_rollout(rollout: Rollout, scores: Scores, scored: Scored) -> dict[str, float]:
    """Means over completions: score, kl (k1, nats a sequence, against the reference), tokens, share ended."""
    mask_BT = rollout.response_mask_BT
    judged = scored.score_B[~scored.score_B.isnan()]
    return {
        "score": float(judged.mean()) if len(judged) else 0.0,
        "kl": float((ops.kl(scores.logp_BT, scores.ref_logp_BT, "k1") * mask_BT).sum(1).mean()),
        "length": float(mask_BT.sum(1).float().mean()),
        "finished": float(rollout.finished_B.float().mean()),
    }
