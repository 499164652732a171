"""Learning rates over the steps of PPO."""

from __future__ import annotations

import math
from dataclasses import dataclass

from align.config.choices import SCHEDULES
from align.errors import AlignError


@dataclass(frozen=True)
class Schedule:
    """A peak rate, reached in `warmup_steps` steps from 0, then constant or falling to 0 at the last step's end."""

    peak: float
    shape: str = "constant"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.shape not in SCHEDULES:
            raise AlignError(f"schedule={self.shape}: write one of {', '.join(SCHEDULES)}")

    def rate(self, step: int, steps: int) -> float:
        """The rate of step `step` (from 0) out of `steps`.

        As transformers' schedules of these names, but that the first step of a warm-up has a rate above 0: its
        rollouts are paid for.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        if self.shape == "linear":
            return self.peak * (1 - done)
        if self.shape == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * done))
        return self.peak
