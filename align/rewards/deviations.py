"""How widely the terms of a sum vary, so that each can be divided by it.

Shapes: B completions.
"""

from __future__ import annotations

import math

from torch import Tensor

LEAST = 1e-6
"""A smaller deviation is rounding: such a term is left as it is."""

Moments = tuple[int, float, float]
"""How many values, their mean, and the sum of squares around it."""


class Deviations:
    """The deviation of each term over the last batch that was trained on (`batch`), or over all so far (`running`).

    A batch that is not trained on changes nothing; before the first that is, it is measured by the first one of all.
    """

    def __init__(self, running: bool) -> None:
        self.running = running
        self.trained: dict[str, Moments] = {}
        self.first: dict[str, Moments] = {}

    def of(self, name: str, score_B: Tensor, training: bool) -> float:
        """What to divide a term by: its deviation (population), or 1 where it does not vary. NaN counts nowhere."""
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
