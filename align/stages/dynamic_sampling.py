"""Dynamic sampling (Yu et al. 2025, DAPO, arXiv 2503.14476, section 3.2): other prompts for those that teach nothing.

    align advantage=grpo critic=none rollout.samples_per_prompt=4 ppo.dynamic_sampling=3

What differs from the paper: a step draws `ppo.dynamic_sampling` further batches at most, and where they do not
suffice prompts whose samples score alike make up the batch, whose size stays; the further prompts are drawn anew from
the data set in each step, so that no step depends on what another one drew.

Shapes: B completions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from align import ops
from align.stages.rollouts import Row
from align.stages.scored_rollout import ScoredRollout, joined


def replace_alike(
    first: ScoredRollout, further: Iterable[list[Row]], sample: Callable[[list[Row]], ScoredRollout], bound: int
) -> tuple[ScoredRollout, dict[str, float]]:
    """As many completions as `first` has, of prompts whose samples differ in score as far as `bound` batches give them.

    First those of the earlier batches; `first` itself where nothing had to be drawn. In the metrics, over all
    that was written in the step: `rollout/alike_share` of the completions, `rollout/extra_batches` drawn, and
    `rollout/scores`, their mean score, which the batch's own (`objective/scores`) no longer tells.
    """
    sampled, extra, batches = first, 0, iter(further)
    alike_B = ops.alike(sampled.scored.score_B, sampled.rollout.row_B)
    while extra < bound and int((~alike_B).sum()) < len(first) and (rows := next(batches, None)):
        sampled, extra = joined(sampled, sample(rows)), extra + 1
        alike_B = ops.alike(sampled.scored.score_B, sampled.rollout.row_B)
    metrics = {
        "rollout/alike_share": float(alike_B.float().mean()),
        "rollout/extra_batches": float(extra),
        "rollout/scores": float(sampled.scored.score_B.nanmean()),
    }
    if not extra:
        return first, metrics
    best_first_B = torch.cat([(~alike_B).nonzero()[:, 0], alike_B.nonzero()[:, 0]])
    return sampled[best_first_B[: len(first)]], metrics
