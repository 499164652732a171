"""Columns of a row by type; errors name the place of the row and the remedy."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from align.data.reading import Cell, Placed
from align.errors import AlignError, typed

MESSAGES = '[{"role": "user", "content": "…"}, …]'
UNRENDERED = ("tools", "chat_template_kwargs", "images")
"""Columns beside messages that TRL's trainers hand to the chat template, and align does not."""


@dataclass
class Columns:
    """A row, and what its errors need: its place, the format it should have, the stage it is for."""

    place: str
    row: dict
    format: str
    purpose: str
    format_of: Callable[[dict, str], str | None] = lambda row, purpose: None
    """The format that a row's columns are of, for the message where this one lacks a column."""

    def error(self, problem: str, instead: str) -> AlignError:
        return AlignError(f"{self.place} {problem}: use {instead}")

    def has(self, column: str) -> bool:
        """Return True where the column has a value; null is none, as data sets with united columns have it."""
        return self.row.get(column) is not None

    def text(self, column: str) -> str:
        value = self._value(column)
        conversation = _messages(value) and "prompt" in self.row
        other = f", or data@{self.purpose}.data=conversational for messages" if conversation else ""
        return self._right(column, value, isinstance(value, str), f"a string{other}")

    def messages(self, column: str, instead: str | None = None) -> list[dict]:
        """A list of messages; `instead` is another column that would do, for the error."""
        value = self._value(column, instead)
        self._check_rendered(value)
        other = f"data@{self.purpose}.data=prompt_completion for strings"
        other = f"{MESSAGES}, or {other}" if isinstance(value, str) else f"a string or messages, {MESSAGES}"
        return self._right(column, value, _messages(value), other)

    def text_or_messages(self, column: str) -> str | list[dict]:
        value = self._value(column)
        self._check_rendered(value)
        right = isinstance(value, str) or _messages(value)
        return self._right(column, value, right, f"a string or messages, {MESSAGES}")

    def number(self, column: str) -> float:
        value = _typed(self._value(column))
        return float(self._right(column, value, is_number(value), "a finite number"))

    def numbers(self, column: str) -> list[float]:
        value = self._value(column)
        right = isinstance(value, list) and all(map(is_number, value))
        return [float(one) for one in self._right(column, value, right, "a list of finite numbers")]

    def label(self, column: str) -> bool:
        """A truth value; 1 and 0 will do, since csv and many data sets have them."""
        value = _typed(self._value(column))
        if value not in (True, False):
            raise self.error(f"has {value!r} in {column!r}, which is no label", "true (or 1) or false (or 0)")
        return bool(value)

    def completions(self, column: str) -> list[str | list[dict]]:
        """A list of completions, strings or messages, all in one way."""
        value = self._value(column)
        self._check_rendered(value[0] if isinstance(value, list) and value else value)
        texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
        right = isinstance(value, list) and bool(value) and (texts or all(map(_messages, value)))
        return self._right(column, value, right, "a list of strings, or of lists of messages")

    def _check_rendered(self, value: object) -> None:
        """Raise AlignError for messages beside a column that would be left out of them."""
        for name, beside in self.row.items() if _messages(value) else ():
            if name in UNRENDERED and beside not in (None, "", "[]", "{}", [], {}):
                raise self.error(
                    f"has {name!r} beside its messages, which align does not render yet",
                    "rows without this column; what a model must know of it can stand in a system message",
                )

    def _right(self, column: str, value: Any, right: bool, instead: str) -> Any:
        """The value. Raises AlignError where it is not right."""
        if not right:
            raise self.error(f"has {_kind(value)} in {column!r}", instead)
        return value

    def _value(self, column: str, instead: str | None = None) -> object:
        if column in self.row and self.row[column] is None:
            raise self.error(f"has null in {column!r}", "a value, or leave the row out")
        if column not in self.row:
            wanted = f"{column!r}" + (f" (nor {instead!r})" if instead else "")
            given, chosen = given_by(f"{self.purpose}.data.columns", instead or column, self.row), self.format
            other = self.format_of(self.row, self.purpose)
            raise self.error(
                f"has no column {wanted}, only {', '.join(map(str, self.row)) or 'none'}",
                f"data@{self.purpose}.data={other}, which has these columns, or {given}"
                if other
                else f"{given}, or another format than data@{self.purpose}.data={chosen}",
            )
        if half := half_character(self.row[column]):
            raise self.error(
                f"has half a character ({half!a}) in {column!r}", "the whole character, or leave the row out"
            )
        return self.row[column]


HALF = re.compile("[\ud800-\udfff]")
"""Surrogates: json can hold one alone, and no tokenizer takes it."""


def half_character(value: object) -> str | None:
    r"""The first surrogate in the strings of a value, lists and objects included; None where there is none.

    >>> half_character([{"content": "a"}, {"content": "b" + chr(0xD83D)}]) == chr(0xD83D)
    True
    """
    if isinstance(value, str):
        found = HALF.search(value)
        return found and found.group()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((half for one in parts if (half := half_character(one))), None)


def given_by(key: str, column: str, row: dict, wanted: str | None = None) -> str:
    """Setting to use under `key` where a row lacks a column: the nearest of those that it has, or COLUMN.

    `wanted` is the column looked for in the row, where that has another name.

    >>> given_by("sft.data.columns", "prompt", {"Prompts": "Why?"}), given_by("sft.data.columns", "prompt", {"q": ""})
    ('sft.data.columns.prompt=Prompts', 'sft.data.columns.prompt=COLUMN')
    """
    names = {str(name).lower(): str(name) for name in row}
    near = difflib.get_close_matches((wanted or column).lower(), names, n=1)
    return typed(f"{key}.{column}", names[near[0]] if near else "COLUMN")


def _typed(value: object) -> object:
    """The number or label that a csv cell holds; any other value as it is."""
    if not isinstance(value, Cell):
        return value
    try:
        return {"true": True, "false": False}[value.lower()] if value.isalpha() else float(value)
    except (ValueError, KeyError):
        return value


def is_number(value: object) -> bool:
    """A finite number, and no truth value."""
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)


def _messages(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(one, dict) for one in value)
        and all(isinstance(one.get(part), str) for one in value for part in ("role", "content"))
    )


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "a list that is not of messages" if value else "an empty list"
    return {str: "a string", dict: "an object", bool: "true or false"}.get(type(value), f"the number {value}")


ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def renamed(rows: list[Placed], columns: Mapping[str, str], key: str) -> list[Placed]:
    """The rows with the columns that `columns` names: from another column, or by a jinja template of the row's.

    Other columns stay. Raises AlignError, naming the row, for a column that is not there and for a template that
    cannot be filled; naming `key`, for one that is none.
    """
    for name, source in columns.items():
        if not isinstance(source, str) or not source:
            template = typed(f"{key}.{name}", "{{ column }}")
            raise AlignError(f"{key}.{name}={source}: use a column's name, or a template: {template}")
    makers = {name: _maker(source, key, name) for name, source in columns.items()}
    return [(place, {**row, **{name: make(place, row) for name, make in makers.items()}}) for place, row in rows]


def _maker(source: str, key: str, name: str) -> Callable[[str, dict], object]:
    setting = f"{key}.{name}={source}"
    if "{{" not in source and "{%" not in source:

        def taken(place: str, row: dict) -> object:
            if source not in row:
                raise AlignError(
                    f"{place} has no column {source!r}, only {', '.join(map(str, row)) or 'none'}\n"
                    f"  {setting} wants it: use {given_by(key, name, row, source)}"
                )
            return row[source]

        return taken
    try:
        template = ENVIRONMENT.from_string(source)
    except TemplateError as error:
        raise AlignError(f"{setting} is no template: {error}\n  use text with {{{{ column }}}} in it") from error

    def filled(place: str, row: dict) -> Cell:
        try:
            return Cell(template.render(row))  # read as a number where one is wanted
        except (TemplateError, TypeError) as error:
            raise AlignError(f"{place}: {setting} cannot be filled: {error}") from error

    return filled
