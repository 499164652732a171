"""A penalty for completions that come near the longest there may be.

    align reward=sum +reward@reward.terms.rm=model +reward@reward.terms.length=overlong reward.terms.length.buffer=16

Shapes: B completions.
"""

from __future__ import annotations

import torch

from align import ops
from align.types import RewardState, Rollout, Scored, Texts


class Overlong:
    """From 0 down to -1 over the last `buffer` tokens before `max_length` (`ops.overlong_penalty`, as DAPO has it).

    The length counts all tokens of the response, its stop token among them. Raises ValueError for a buffer that
    is not from 1 to max_length.
    """

    name = "overlong"

    def __init__(self, max_length: int, buffer: int) -> None:
        ops.overlong_penalty(torch.zeros(0), max_length, buffer)
        self.max_length, self.buffer = max_length, buffer
        self.wants: set[str] = set()

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """score_B, float32."""
        score_B = ops.overlong_penalty(rollout.response_mask_BT.sum(1), self.max_length, self.buffer)
        return Scored(score_B, {self.name: score_B})
