"""Scores of 1 for a completion of the wanted form: one that matches a pattern, or JSON of a schema.

    align reward=format "reward.pattern='<think>.*</think>.*'"
    align reward=json reward.schema=answer.schema.json

Shapes: B completions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import regex
import torch

from align.data.encode import text_of
from align.errors import AlignError
from align.installed import require
from align.rewards.function import row_name
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
            raise ValueError(f"timeout={timeout}: use a number of seconds above 0")
        self.timeout = timeout
        self.wants: set[str] = set()

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """score_B, float32. Raises AlignError for a completion that takes longer than `timeout`."""
        places = [f"reward 'format', {row_name(rollout, row)}" for row in range(len(texts.completions))]
        fits = [self.fits(text_of(text), place) for text, place in zip(texts.completions, places, strict=True)]
        score_B = torch.tensor(fits, dtype=torch.float32, device=rollout.row_B.device)
        return Scored(score_B, {self.name: score_B})

    def fits(self, text: str, where: str) -> bool:
        """Return True where a text matches; `where` begins the message of AlignError for one that takes too long."""
        with patience(f"{where}: {self.pattern.pattern}", self.timeout, text):
            return self.pattern.fullmatch(text.strip(), timeout=self.timeout) is not None


class JSONReward:
    """1 where the whole completion is JSON and valid by a JSON schema, else 0.

    schema: a file, or the schema itself. Its `$schema` says which draft it is of; 2020-12 without one. A `$ref`
    leads within the schema; nothing is fetched. A `pattern` in it is Python's `re`, without a bound on time.

    Raises AlignError where jsonschema is not installed, ValueError for what is no schema.
    """

    name = "json"

    def __init__(self, schema: str | dict[str, Any] | bool) -> None:
        require("jsonschema", "reward=json", "reward=format with a pattern")
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import validator_for
        from referencing import Registry

        self.here, given = ("schema", schema) if not isinstance(schema, str) else (f"schema={schema}", _read(schema))
        if not isinstance(given, dict | bool):
            raise ValueError(f"{self.here} is {given!r:.60}, no JSON schema: use an object such as {{type: object}}")
        kind = validator_for(given, default=Draft202012Validator)
        try:
            kind.check_schema(given)
        except SchemaError as error:
            raise ValueError(f"{self.here} is no JSON schema: at {error.json_path}: {error.message:.200}") from error
        self.validator = kind(given, registry=Registry())
        self.wants: set[str] = set()

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """score_B, float32. Raises AlignError for a `$ref` that leads nowhere."""
        fits = [self.fits(text_of(text)) for text in texts.completions]
        score_B = torch.tensor(fits, dtype=torch.float32, device=rollout.row_B.device)
        return Scored(score_B, {self.name: score_B})

    def fits(self, text: str) -> bool:
        """Return True where a text is JSON by the schema."""
        from referencing.exceptions import Unresolvable

        try:
            return self.validator.is_valid(json.loads(text, parse_constant=_no_number))
        except (ValueError, RecursionError):  # no JSON, or brackets without end
            return False
        except Unresolvable as error:
            raise AlignError(
                f"reward {self.name!r}, {self.here}: a $ref leads nowhere: {error}\n"
                "  use what it names into $defs of the schema"
            ) from error


def _read(path: str) -> Any:
    file = Path(path).expanduser()
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"schema={path} cannot be read ({error.strerror}): use a file with a JSON schema") from error
    except ValueError as error:
        raise ValueError(f"schema={path} is not JSON: {error}") from error


def _no_number(word: str) -> NoReturn:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(word)


def compiled(pattern: str) -> regex.Pattern:
    """The expression, in which `.` is a line break, too. Raises ValueError for one that is none."""
    try:
        return regex.compile(pattern, regex.DOTALL)
    except (regex.error, TypeError) as error:
        raise ValueError(f"pattern={pattern} is no regular expression: {error}") from error


@contextmanager
def patience(what: str, seconds: float, text: str) -> Iterator[None]:
    """Inside, a match of `text` that times out is an AlignError, whose message begins with `what`."""
    try:
        yield
    except TimeoutError:
        raise AlignError(
            f"{what} takes more than {seconds:g} seconds for {text[:60]!r}\n"
            "  use a pattern that can match a text in one way only: fewer * and + in one another"
        ) from None
