"""The weight of a term of a sum: a number, or one that moves over the steps of PPO.

reward.weights.polite=0.5
reward.weights.polite=[[0,1.0],[50,0.2]]          from 1.0 in the first step in a line to 0.2 in the 51st, then 0.2
reward.weights.polite=[cosine,[0,1.0],[50,0.2]]   the same along half a wave of the cosine
reward.weights.polite=[hold,[0,0.0],[20,1.0]]     0.0 in the first 20 steps, then 1.0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from align.data.columns import is_number

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda way: way,
    "cosine": lambda way: 0.5 * (1 - math.cos(math.pi * way)),
    "hold": lambda way: 0.0,
}
"""How much of the change from one point to the next is done after a share of the way."""


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
        raise ValueError(f"{here}: write a number, or points such as [[0,1.0],[50,0.2]]")
    shape, points = (setting[0], setting[1:]) if isinstance(setting[0], str) else ("linear", setting)
    if shape not in SHAPES:
        raise ValueError(f"{here}: write one of {', '.join(SHAPES)} before the points")
    if not points or not all(_point(point) for point in points):
        raise ValueError(f"{here}: write points [STEP,WEIGHT] with whole steps from 0, such as [[0,1.0],[50,0.2]]")
    if any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
        raise ValueError(f"{here}: steps are out of order: write each point after those of earlier steps")
    return Weight(tuple((step, float(weight)) for step, weight in points), shape)


def _point(point: Any) -> bool:
    if not isinstance(point, list | tuple) or len(point) != 2:
        return False
    step, weight = point
    return is_number(step) and isinstance(step, int) and step >= 0 and is_number(weight)
