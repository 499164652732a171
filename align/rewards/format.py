"""Whether a completion has the form that a pattern describes.

    align reward=format "reward.pattern='<think>.*</think>.*'"

Shapes: B completions.
"""

from __future__ import annotations

import math

import torch

from align.data.encode import text_of
from align.rewards.answers import row_name
from align.rewards.pattern import compiled, patience
from align.types import RewardState, Rollout, Scored, Texts


class FormatReward:
    """1 where the whole completion, but for white space around it, matches a pattern, else 0.

    pattern: a regular expression of Python's `re`, or with what the `regex` library adds to it; `.` is a line break,
    too, as in `evaluate.pattern`. timeout: seconds for one completion. A pattern that can match a text in many
    ways, such as (a|aa)+c, takes time that doubles with each letter; the run then ends and names the row, since a
    score that hangs on the clock would not repeat.

    Raises ValueError for a pattern that is none.
    """

    name = "format"

    def __init__(self, pattern: str, timeout: float = 10.0) -> None:
        self.pattern = compiled(pattern)
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout={timeout}: write a number of seconds above 0")
        self.timeout = timeout
        self.wants: set[str] = set()

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """score_B, float32. Raises AlignError for a completion that takes longer than `timeout`."""
        places = [f"reward 'format', {row_name(rollout, row)}" for row in range(len(texts.completions))]
        fits = [self.fits(text_of(text), place) for text, place in zip(texts.completions, places, strict=True)]
        score_B = torch.tensor(fits, dtype=torch.float32, device=rollout.row_B.device)
        return Scored(score_B, {self.name: score_B})

    def fits(self, text: str, where: str) -> bool:
        """Whether a text matches; `where` begins the message of the AlignError for one that takes too long."""
        with patience(f"{where}: {self.pattern.pattern}", self.timeout, text):
            return self.pattern.fullmatch(text.strip(), timeout=self.timeout) is not None
