"""The number that a judge's words come to."""

from __future__ import annotations

import regex

from align.rewards.pattern import compiled, patience

ALONE = r"(?<![^\W_]|[.,])(-?\d++(?:[.,]\d++)*+)(?![^\W_])"
"""A number that is no part of a word; whole, so that 7,5 and 1.2.3 are read as no number at all."""
NUMBER = regex.compile(ALONE + r"(?:\s*\(?(?:/|(?:out )?of)\s*\d++(?:\.\d++)?)?")
"""With what it is out of, which is no grade: 8, 7.5, 8/10, 8 out of 10."""
LABELLED = regex.compile(r"score[\"'*\s]*+[:=][\"'*\s\[]*+" + ALONE, regex.IGNORECASE)
PATIENCE = 10.0
"""Seconds for a pattern of the user's on one answer."""


class Grade:
    """The number of an answer, moved to 0 for the scale's low end and 1 for its high one.

    Without a pattern it is the number behind the last `Score:`, or else the last one there is; `8/10` and `8 out of 10`
    are 8. A pattern is a regular expression with one group, the number, whose last match counts; `.` is a line break,
    too. What is no number, or lies outside the scale, is no grade, and no earlier number is taken for it.

    Raises ValueError for a scale or pattern that cannot be.
    """

    def __init__(self, scale: tuple[float, float], pattern: str | None = None) -> None:
        self.low, self.high = scale
        if not self.low < self.high:
            raise ValueError(f"scale=[{self.low:g},{self.high:g}]: write two numbers, the worse grade first")
        self.pattern = None if pattern is None else compiled(pattern)
        if self.pattern and self.pattern.groups != 1:
            raise ValueError(f"pattern={pattern} has {self.pattern.groups} groups: write one, (…), around the number")

    def of(self, answer: str) -> float | None:
        """From 0 to 1; None for an answer that holds no grade. Raises AlignError for a pattern that takes for ever."""
        for pattern in [self.pattern] if self.pattern else [LABELLED, NUMBER]:
            if found := self._last(pattern, answer):
                return self._on_scale(found)
        return None

    def _last(self, pattern: regex.Pattern, answer: str) -> str | None:
        with patience(f"pattern={pattern.pattern}", PATIENCE, answer):
            groups = [match[1] for match in pattern.finditer(answer, timeout=PATIENCE)]
        return groups[-1] if groups else None

    def _on_scale(self, found: str) -> float | None:
        try:
            number = float(found)
        except ValueError:
            return None
        return (number - self.low) / (self.high - self.low) if self.low <= number <= self.high else None
