"""The grade in a judge's reply: what is read, and what is not.

Read is the last of these, after a closing `</think>` and with markdown's marks left out:

- a reply that is nothing but the number: `8`, `8/10`, `8 out of 10`;
- a line that begins with `Score:`, `Final score:`, `Grade:` or `Rating:` and the number, whatever follows;
- `Score: 8` at the very end;
- a JSON object with a number as its `score`, `grade` or `rating`; nothing around it is read then.

Anything else is not read: a number somewhere in a sentence, a range (`7-8`), one out of another total than the scale's
end (`4/5` of 1 to 10), one with a comma (`7,5`), or outside the scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from numbers import Real

import regex

from align.rewards.format import compiled, patience

NUMBER = r"(?<grade>-?\d++(?:[.,]\d++)*+)(?!\w)(?:\s*\(?(?:/|(?:out )?of)\s*(?<total>\d++(?:\.\d++)?+)\)?)?+"
"""With the total that it is out of; 7,5 and 1.2.3 are matched whole, and are no numbers then."""
LABEL = r"(?:(?:final|overall|total)\s+)?(?:score|grade|rating)\s*(?:\([^)\n]*\)\s*)?[:=]\s*"
ALONE = regex.compile(rf"\s*{NUMBER}\s*\.?\s*", regex.IGNORECASE)
RANGE = r"(?!\s*(?:%|(?:[-–—~]|to\b|or\b|and\b|(?:out )?of the\b)\s*\d))"
"""Behind a number that is none of the scale: 7-8, 7 or 8, 70%, 3 of the 5 points."""
LABELLED = regex.compile(
    rf"^[ \t>]*{LABEL}{NUMBER}{RANGE}|\b{LABEL}{NUMBER}(?=\s*\.?\s*\Z)", regex.IGNORECASE | regex.MULTILINE
)
KEYS = ("score", "grade", "rating")
MARKS = regex.compile(r"[*_`#\[\]]+")
"""Of markdown: emphasis, code, headings, and the brackets of [[8]]."""
PATIENCE = 10.0
"""Seconds for a pattern of the user's on one reply."""


class Grade:
    """The number of a reply, moved to 0 for the scale's low end and 1 for its high one.

    A pattern is a regular expression with one group, the number, whose last match counts; `.` is a line break, too.
    What is no number, or lies outside the scale, is no grade, and no earlier number is taken for it.

    Raises ValueError for a scale or pattern that cannot be.
    """

    def __init__(self, scale: tuple[float, float], pattern: str | None = None) -> None:
        self.low, self.high = scale
        if not self.low < self.high:
            raise ValueError(f"scale=[{self.low:g},{self.high:g}]: use two numbers, the worse grade first")
        self.pattern = None if pattern is None else compiled(pattern)
        if self.pattern and self.pattern.groups != 1:
            raise ValueError(f"pattern={pattern} has {self.pattern.groups} groups: use one, (…), around the number")

    def of(self, reply: str) -> float | None:
        """From 0 to 1; None for a reply that holds no grade. Raises AlignError for a pattern that takes for ever."""
        if self.pattern:
            return self._on_scale(self._last(self.pattern, reply))
        said = reply.rpartition("</think>")[2]
        if found := list(_objects(said)):
            return self._on_scale(found[-1])
        said = MARKS.sub("", said)
        match = ALONE.fullmatch(said) or next(reversed(list(LABELLED.finditer(said))), None)
        if match is None or (match["total"] and float(match["total"]) != self.high):
            return None
        return self._on_scale(match["grade"])

    def _last(self, pattern: regex.Pattern, reply: str) -> str | None:
        with patience(f"pattern={pattern.pattern}", PATIENCE, reply):
            groups = [match[1] for match in pattern.finditer(reply, timeout=PATIENCE)]
        return groups[-1] if groups else None

    def _on_scale(self, found: str | Real | None) -> float | None:
        try:
            number = float(found)
        except (TypeError, ValueError):
            return None
        return (number - self.low) / (self.high - self.low) if self.low <= number <= self.high else None


def _objects(text: str) -> Iterator[object]:
    """The grade of each JSON object in a text that has one, in order; objects inside others are parts of these."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            value, end = {}, place + 1
        yield from (one for name, one in value.items() if name.lower() in KEYS and not isinstance(one, bool))
        place = text.find("{", end)
