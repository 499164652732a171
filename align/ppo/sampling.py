"""Completions of some prompts that a PPO step learns from, with their scores by roles and reward.

Shapes: B completions, P prompt tokens, T response tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from align import ops
from align.ppo.metrics import Average
from align.ppo.rollouts import Row
from align.types import Rollout, Scored, Scores


@dataclass
class ScoredRollout:
    """Completions, their scores by the roles, and their scores by the reward; sliced together."""

    rollout: Rollout
    scores: Scores
    scored: Scored
    logged: dict[str, float]
    """By the rewards, of all that was written."""
    tokens: int
    """That were written, those of completions left out among them."""

    def __len__(self) -> int:
        return len(self.rollout)

    def __getitem__(self, rows: Tensor) -> ScoredRollout:
        rows = rows.cpu()  # which indexes tensors of any device
        return dataclasses.replace(self, rollout=self.rollout[rows], scores=self.scores[rows], scored=self.scored[rows])


def joined(a: ScoredRollout, b: ScoredRollout) -> ScoredRollout:
    """The completions of both, those of `a` first, padded as one rollout; logged figures are means over both."""
    columns, terms, logged = {}, {}, Average()
    for name in {**a.rollout.columns, **b.rollout.columns}:
        columns[name] = [value for one in (a, b) for value in one.rollout.columns.get(name, [None] * len(one))]
    for name in {**a.scored.terms, **b.scored.terms}:
        each = [one.scored.terms.get(name, torch.full((len(one),), torch.nan)) for one in (a, b)]
        terms[name] = torch.cat([term_B.to(a.scored.score_B) for term_B in each])
    for one in (a, b):
        logged.add(one.logged, len(one))
    return ScoredRollout(
        dataclasses.replace(a.rollout, columns=columns, **_tensors(a.rollout, b.rollout)),
        Scores(**_tensors(a.scores, b.scores)),
        Scored(torch.cat([a.scored.score_B, b.scored.score_B]), terms, _penalties(a.scored, b.scored)),
        logged.means(),
        a.tokens + b.tokens,
    )


def _penalties(a: Scored, b: Scored) -> Tensor | None:
    if a.penalty_B is None and b.penalty_B is None:
        return None
    return torch.cat([torch.zeros_like(one.score_B) if one.penalty_B is None else one.penalty_B for one in (a, b)])


def _tensors(a: Any, b: Any) -> dict[str, Tensor]:
    """Every tensor of two records in one, by the shape that its name tells: prompts padded left, responses right."""
    found = {}
    for name, one in vars(a).items():
        if isinstance(one, Tensor):
            both = [one, getattr(b, name)]
            if name.endswith(("_BP", "_BT")):
                width = max(x.shape[1] for x in both)
                missing = [width - x.shape[1] for x in both]
                left = name.endswith("_BP")
                both = [pad(x, (m, 0) if left else (0, m)) for x, m in zip(both, missing, strict=True)]
            found[name] = torch.cat(both)
    return found


def replace_alike(
    first: ScoredRollout, further: Iterable[list[Row]], sample: Callable[[list[Row]], ScoredRollout], bound: int
) -> tuple[ScoredRollout, dict[str, float]]:
    """As many completions as `first` has, of prompts whose samples differ in score as far as `bound` batches give them.

    They must differ in more than penalties: of wrong completions the shorter one is no better. First come those of the
    earlier batches; `first` itself is the result where nothing had to be drawn. In the metrics, over all that was
    written in the step: `rollout/alike_share` of the completions, `rollout/extra_batches` drawn, and `rollout/scores`,
    their mean score, which the batch's own (`objective/scores`) no longer tells.
    """
    sampled, extra, batches = first, 0, iter(further)
    alike_B = ops.alike(sampled.scored.judged_B(), sampled.rollout.row_B)
    while extra < bound and int((~alike_B).sum()) < len(first) and (rows := next(batches, None)):
        sampled, extra = joined(sampled, sample(rows)), extra + 1
        alike_B = ops.alike(sampled.scored.judged_B(), sampled.rollout.row_B)
    metrics = {
        "rollout/alike_share": float(alike_B.float().mean()),
        "rollout/extra_batches": float(extra),
    }
    if not sampled.scored.score_B.isnan().all():
        metrics["rollout/scores"] = float(sampled.scored.score_B.nanmean())
    if not extra:
        return first, metrics
    best_first_B = torch.cat([(~alike_B).nonzero()[:, 0], alike_B.nonzero()[:, 0]])
    return sampled[best_first_B[: len(first)]], metrics
