"""Penalties for completions that are too long or repeat themselves.

    align reward=sum +reward@reward.terms.rm=model +reward@reward.terms.length=overlong reward.terms.length.buffer=16
    align reward=sum +reward@reward.terms.rm=model +reward@reward.terms.again=repetition reward.weights.again=0.5

Shapes: B completions.
"""

from __future__ import annotations

import math

import torch
from trl.rewards import get_repetition_penalty_reward

from align import ops
from align.types import RewardState, Rollout, Scored, Texts


class Overlong:
    """From 0 down to -1 over the last `buffer` tokens before `max_length` (`ops.overlong_penalty`, as DAPO has it).

    The length counts all tokens of the response, its stop token among them. Raises ValueError for a buffer that
    is not from 1 to max_length.
    """

    name = "overlong"
    is_penalty = True

    def __init__(self, max_length: int, buffer: int) -> None:
        ops.overlong_penalty(torch.zeros(0), max_length, buffer)
        self.max_length, self.buffer = max_length, buffer
        self.wants: set[str] = set()

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """score_B, float32."""
        score_B = ops.overlong_penalty(rollout.response_mask_BT.sum(1), self.max_length, self.buffer)
        return Scored(score_B, {self.name: score_B})


class Repetition:
    """max_penalty · (1 − different n-grams / n-grams) of a completion's token ids: 0 where none comes twice.

    TRL's `get_repetition_penalty_reward` (Yeo et al. 2025, arXiv 2502.03373, appendix C.2); 0 for completions of fewer
    than `ngram_size` tokens.

    Raises ValueError for an `ngram_size` below 1, and for a `max_penalty` above 0.
    """

    name = "repetition"
    is_penalty = True

    def __init__(self, ngram_size: int = 3, max_penalty: float = -1.0) -> None:
        if ngram_size < 1:
            raise ValueError(f"ngram_size={ngram_size}: use 1 or more")
        if not -math.inf < max_penalty <= 0:
            raise ValueError(f"max_penalty={max_penalty}: use 0 or less, such as -1.0")
        self.penalties = get_repetition_penalty_reward(ngram_size, max_penalty)
        self.wants: set[str] = set()

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """score_B, float32."""
        score_B = torch.tensor(self.penalties(texts.completion_ids), device=rollout.row_B.device)
        return Scored(score_B, {self.name: score_B})
