"""Several rewards added up.

    align reward=sum +reward@reward.terms.rm=model +reward@reward.terms.polite=kind_words reward.weights.polite=0.5

Shapes: B completions, K terms.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from align.data.columns import is_number
from align.rewards.parts import named
from align.types import Reward, RewardState, Rollout, Scored, Texts

NORMALIZE = ("none", "batch", "running")


class SumReward:
    """The weighted sum of rewards, each logged by its name.

    terms: rewards by name. weights: by the same names, 1 where none is given; a list of points is a weight that
    moves over the steps (align/rewards/sum.py), and is logged. A term without an opinion on a row (NaN) is
    left out of that row's sum; the sum is NaN where no term has one.

    normalize: before its weight, each term is divided by its deviation over the batch, or over all batches so
    far (`running`); its mean stays where it is, in the new unit. A batch that is not trained on is divided by the
    deviations that training has come to.

    Raises ValueError without terms, for a weight that has no term or is none, and where all weights are 0.
    """

    def __init__(
        self, terms: dict[str, Reward], weights: dict[str, Any] | None = None, normalize: str = "none"
    ) -> None:
        if not terms:
            raise ValueError("terms has none for reward=sum to add: +reward@reward.terms.polite=kind_words adds one")
        weights = weights or {}
        for name in weights.keys() - terms.keys():
            near = difflib.get_close_matches(name, terms, n=1)
            raise ValueError(
                f"weights.{name} has no term: the terms are {', '.join(terms)}"
                + (f"; did you mean {near[0]}?" if near else f"; +reward@reward.terms.{name}=kind_words adds one")
            )
        if normalize not in NORMALIZE:
            raise ValueError(f"normalize={normalize}: use one of {', '.join(NORMALIZE)}")
        self.terms = dict(terms)
        self.rewards_inside = {f"terms.{name}": term for name, term in terms.items()}
        self.weights = {name: weight_of(weights.get(name, 1.0), f"weights.{name}") for name in terms}
        if not any(weight for one in self.weights.values() for _, weight in one.points):
            raise ValueError("weights are all 0, so that every score is: use one that is not")
        self.deviations = None if normalize == "none" else Deviations(normalize == "running")
        self.wants = set().union(*(term.wants for term in terms.values()))

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """The sum, float32, and each term before its weight, with its own terms below its name."""
        weighted, terms, penalties, deviation = [], {}, [], 1.0
        for name, term in self.terms.items():
            scored = term(rollout, texts, state.within(name))
            terms |= named(name, scored)
            score_B, weight = scored.score_B.float(), self.weights[name].at(state.step)
            if self.deviations:
                deviation = self.deviations.of(name, score_B, state.training)
                state.log_metric(f"{state.place}/{name}/deviation", deviation)
                score_B = score_B / deviation
            if self.weights[name].moves():
                state.log_metric(f"{state.place}/{name}/weight", weight)
            weighted.append(weight * score_B)
            part_B = scored.score_B if getattr(term, "is_penalty", False) else scored.penalty_B
            if part_B is not None:
                penalties.append(weight * part_B.float() / deviation)
        weighted_KB = torch.stack(weighted)
        penalty_B = sum(penalties) if penalties else None
        return Scored(weighted_KB.nansum(0).where(~weighted_KB.isnan().all(0), torch.nan), terms, penalty_B)

    def learned(self) -> dict[str, Any]:
        return self.deviations.learned() if self.deviations else {}

    def load_learned(self, saved: dict[str, Any]) -> None:
        if self.deviations:
            self.deviations.load_learned(saved)


SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda way: way,
    "cosine": lambda way: 0.5 * (1 - math.cos(math.pi * way)),
    "hold": lambda way: 0.0,
}
"""Share of the change from one point to the next that is done after a share of the way."""


@dataclass(frozen=True)
class Weight:
    """Weights at some steps, and a shape between two of them; before the first and after the last it stays."""

    points: tuple[tuple[int, float], ...]
    shape: str = "linear"

    def at(self, step: int) -> float:
        """The weight after `step` steps of PPO: 0 in the first."""
        for (begin, low), (end, high) in pairwise(self.points):
            if begin <= step < end:
                return low + (high - low) * SHAPES[self.shape]((step - begin) / (end - begin))
        return self.points[0][1] if step < self.points[0][0] else self.points[-1][1]

    def moves(self) -> bool:
        return len(self.points) > 1


def weight_of(setting: Any, key: str) -> Weight:
    """The weight that a setting stands for. Raises ValueError, beginning with `key`, where it is none."""
    if is_number(setting):
        return Weight(((0, float(setting)),))
    here = f"{key}={setting}"
    if not isinstance(setting, list | tuple) or not setting:
        raise ValueError(f"{here}: use a number, or points such as [[0,1.0],[50,0.2]]")
    shape, points = (setting[0], setting[1:]) if isinstance(setting[0], str) else ("linear", setting)
    if shape not in SHAPES:
        raise ValueError(f"{here}: use one of {', '.join(SHAPES)} before the points")
    if not points or not all(_point(point) for point in points):
        raise ValueError(f"{here}: use points [STEP,WEIGHT] with whole steps from 0, such as [[0,1.0],[50,0.2]]")
    if any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
        raise ValueError(f"{here}: steps are out of order: use each point after those of earlier steps")
    return Weight(tuple((step, float(weight)) for step, weight in points), shape)


def _point(point: Any) -> bool:
    if not isinstance(point, list | tuple) or len(point) != 2:
        return False
    step, weight = point
    return is_number(step) and isinstance(step, int) and step >= 0 and is_number(weight)


LEAST = 1e-6
"""A smaller deviation is rounding: such a term is left as it is."""

Moments = tuple[int, float, float]
"""Number of values, their mean, and the sum of squares around it."""


class Deviations:
    """The deviation of each term over the last batch that was trained on (`batch`), or over all so far (`running`).

    A batch that is not trained on changes nothing; before the first that is, it is measured by the first one of all.
    """

    def __init__(self, running: bool) -> None:
        self.running = running
        self.trained: dict[str, Moments] = {}
        self.first: dict[str, Moments] = {}

    def of(self, name: str, score_B: Tensor, training: bool) -> float:
        """Divisor of a term: its deviation (population), or 1 where it does not vary. NaN counts nowhere."""
        batch = moments(score_B[~score_B.isnan()])
        if batch is not None:
            self.first.setdefault(name, batch)
            if training:
                earlier = self.trained.get(name) if self.running else None
                self.trained[name] = together(earlier, batch) if earlier else batch
        known = self.trained.get(name) or self.first.get(name)
        deviation = math.sqrt(known[2] / known[0]) if known else 0.0
        return deviation if deviation > LEAST else 1.0

    def learned(self) -> dict[str, list[float]]:
        return {name: list(moments) for name, moments in self.trained.items()}

    def load_learned(self, saved: dict[str, list[float]]) -> None:
        self.trained = {name: (int(count), mean, squares) for name, (count, mean, squares) in saved.items()}


def moments(values: Tensor) -> Moments | None:
    """In float64; None of no values."""
    if not len(values):
        return None
    mean = values.double().mean()
    return len(values), float(mean), float((values.double() - mean).square().sum())


def together(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of values in one (Chan, Golub, LeVeque 1979, equation 1.3)."""
    count, apart = a[0] + b[0], b[1] - a[1]
    return count, a[1] + apart * b[0] / count, a[2] + b[2] + apart**2 * a[0] * b[0] / count
