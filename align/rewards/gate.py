"""A reward that another one opens.

    align reward=gate +reward@reward.score=model +reward@reward.condition=format reward.condition.pattern=.*please.*

Shapes: B completions.
"""

from __future__ import annotations

import math

import torch

from align.rewards.parts import named
from align.types import Reward, RewardState, Rollout, Scored, Texts


class Gate:
    """The reward `score` where `condition` scores `threshold` or more, and `otherwise` elsewhere.

    Both are logged by name on all rows, and the share of rows that pass as `open`. Where either has no
    opinion (NaN) there is none: neither is known then, what the row is worth or whether it may pass.

    Raises ValueError where either is missing or no reward, and for numbers that are not finite.
    """

    def __init__(
        self, score: Reward | None, condition: Reward | None, threshold: float = 1.0, otherwise: float = 0.0
    ) -> None:
        self.rewards_inside = {"score": score, "condition": condition}
        for name, reward in self.rewards_inside.items():
            if reward is None:
                raise ValueError(f"{name} is not set: add the reward, +reward@reward.{name}=fn")
            if not callable(reward):
                raise ValueError(f"{name}={reward} is no reward: use +reward@reward.{name}={reward}")
        for name, number in (("threshold", threshold), ("otherwise", otherwise)):
            if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
                raise ValueError(f"{name}={number}: use a finite number")
        self.threshold, self.otherwise = threshold, otherwise
        self.wants = score.wants | condition.wants

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """score_B, float32, and the terms of both."""
        scored = {name: reward(rollout, texts, state.within(name)) for name, reward in self.rewards_inside.items()}
        score_B, condition_B = (scored[name].score_B.float() for name in ("score", "condition"))
        known_B = ~(score_B.isnan() | condition_B.isnan())
        open_B = condition_B >= self.threshold
        if known_B.any():
            state.log_metric(f"{state.place}/open", float(open_B[known_B].float().mean()))
        gated_B = torch.where(open_B, score_B, self.otherwise).where(known_B, torch.nan)
        terms = {part: term_B for name, one in scored.items() for part, term_B in named(name, one).items()}
        penalty_B = scored["score"].penalty_B
        return Scored(gated_B, terms, None if penalty_B is None else torch.where(open_B, penalty_B, 0.0))
