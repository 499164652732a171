"""Watch for a policy that learns to please its reward alone: an independent judge scores the held-out samples too.

    align stages=[ppo] … ppo.eval_every=8 watch=judge watch.judge.fn=my_rules.true_score watch.action=stop

A reward model's score and people's wishes part at some distance from the reference (Gao, Schulman and Hilton
2022, "Scaling laws for reward model overoptimization", arXiv 2210.10760). Evaluations have the same prompts and the
same randomness, so two of them are compared row by row.

Shapes: B completions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from align.errors import AlignError
from align.types import Reward, RewardState, Rollout, Texts
from align.words import counted

ACTIONS = ("warn", "stop")
FEWEST, ENOUGH = 2, 8
"""Held-out prompts that are watched: fewer than the first have no standard error, so that a watch cannot fire; fewer
than the second have one that is itself a guess."""


@dataclass(frozen=True)
class Seen:
    """An evaluation: its step, and what the reward and the judge say of each completion; NaN is no opinion."""

    step: int
    score_B: Tensor
    judge_B: Tensor

    def judge(self) -> float:
        return float(self.judge_B.nanmean())


class Watch:
    """Fires when the score has risen and the judge has fallen, `patience` evaluations one after another.

    Both are measured from the evaluation that the judge liked best, and count from `deviations` standard errors of
    the mean of the rows' differences on. action: warn, or stop, upon which the stage ends with the policy of that best
    evaluation.

    Raises ValueError for settings that cannot be.
    """

    def __init__(self, judge: Reward, patience: int = 2, deviations: float = 2.0, action: str = "warn") -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience={patience}: use a number of evaluations, 1 or more")
        if not isinstance(deviations, int | float) or isinstance(deviations, bool) or not 0 <= deviations < math.inf:
            raise ValueError(f"deviations={deviations}: use a number from 0")
        if action not in ACTIONS:
            raise ValueError(f"action={action}: use one of {', '.join(ACTIONS)}")
        self.judge, self.patience, self.deviations, self.action = judge, patience, deviations, action
        self.best: Seen | None = None
        self.last: Seen | None = None
        self.parted = 0
        """Evaluations in a row in which the score was up and the judge down."""
        self.fired: Seen | None = None
        """The evaluation at which it fired first."""

    def see(self, step: int, rollout: Rollout, texts: Texts, score_B: Tensor) -> dict[str, float]:
        """Judges an evaluation's completions; figures for the log.

        Raises AlignError where the judge has no opinion on any completion.
        """
        judge_B = self.judge(rollout, texts, RewardState(step)).score_B
        seen = Seen(step, score_B.detach().double().cpu(), judge_B.detach().double().cpu())
        if seen.judge_B.isnan().all():
            raise AlignError(f"watch.judge has no opinion on any of {counted(len(judge_B), 'held-out completion')}")
        if self.best is None or seen.judge() > self.best.judge():
            self.best = seen
        self.parted = self.parted + 1 if self._parts(seen) else 0
        self.last = seen
        if self.parted >= self.patience and self.fired is None:
            self.fired = seen
        return {"judge": seen.judge(), "parted": float(self.parted)}

    def _parts(self, seen: Seen) -> bool:
        up = standard_errors(seen.score_B - self.best.score_B)
        down = standard_errors(self.best.judge_B - seen.judge_B)
        return min(up, down) > self.deviations

    @property
    def stops(self) -> bool:
        return self.action == "stop" and self.fired is not None

    def warning(self) -> str:
        """Warning about the evaluation at which it fired."""
        seen, best = self.fired, self.best
        return (
            f"warning: step {seen.step}: the score is up {float((seen.score_B - best.score_B).nanmean()):.2f} since "
            f"step {best.step}, and watch.judge down from {best.judge():.2f} to {seen.judge():.2f}, "
            f"{self.patience} evaluations in a row: the policy games its reward"
        )

    def facts(self) -> dict[str, Any]:
        """For card.json: what the judge says of the last policy, and the step of the evaluation at which it fired."""
        last = {"last": self.last.judge()} if self.last else {}
        return {**last, "fired": self.fired.step if self.fired else None}


def check_watched(held_out: int, prompts: int, eval_prompts: int) -> str:
    """A warning where few prompts are watched, else ''.

    `held_out` of all `prompts` of ppo.data are there to be watched, and `ppo.eval_prompts` of them are. Raises
    AlignError where they are too few for a watch ever to fire.
    """
    watched = min(held_out, eval_prompts)
    if watched >= ENOUGH:
        return ""
    share = min(math.ceil(200 * ENOUGH / prompts) / 100, 0.5)
    more = f"ppo.data.eval_share={share:g}, or ppo.data.eval_path=FILE"
    if watched == eval_prompts:
        found, more = f"ppo.eval_prompts={eval_prompts} takes no more", f"ppo.eval_prompts={2 * ENOUGH}"
    elif not held_out:
        found = f"ppo.data has none among its {prompts}"
    else:
        found = f"ppo.data has {held_out} among its {prompts}"
    if watched >= FEWEST:
        return f"warning: watch compares held-out prompts, and {found}: too few to rely on; use {more}"
    raise AlignError(
        f"watch compares held-out prompts, {FEWEST} at least, and {found}: it could never fire\n"
        f"  use {more} (better {ENOUGH} or more of them), or watch=none"
    )


def standard_errors(difference_B: Tensor) -> float:
    """The mean of paired differences in standard errors of it (Student's t); rows that are NaN are left out.

    >>> import torch
    >>> round(standard_errors(torch.tensor([1.0, 2.0, 3.0, float("nan")])), 4)  # mean 2, deviation 1, three rows
    3.4641
    """
    known_B = difference_B[~difference_B.isnan()].double()
    if len(known_B) < 2:
        return 0.0  # one row tells nothing of the others
    mean, error = float(known_B.mean()), float(known_B.std()) / math.sqrt(len(known_B))
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
