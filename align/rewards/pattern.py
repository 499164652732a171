"""Regular expressions of a user's, which may be none or take for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import regex

from align.errors import AlignError


def compiled(pattern: str) -> regex.Pattern:
    """The expression, in which `.` is a line break, too. Raises ValueError for one that is none."""
    try:
        return regex.compile(pattern, regex.DOTALL)
    except (regex.error, TypeError) as error:
        raise ValueError(f"pattern={pattern} is no regular expression: {error}") from error


@contextmanager
def patience(said: str, seconds: float, text: str) -> Iterator[None]:
    """Inside, a match of `text` that times out is an AlignError, whose message begins with `said`."""
    try:
        yield
    except TimeoutError:
        raise AlignError(
            f"{said} takes more than {seconds:g} seconds for {text[:60]!r}\n"
            "  write a pattern that can match a text in one way only: fewer * and + in one another"
        ) from None
