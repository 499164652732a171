"""Columns by another name, or made of several: `sft.data.columns.prompt=question`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from align.data.columns import given_by
from align.data.reading import Placed
from align.errors import AlignError, typed

ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def renamed(rows: list[Placed], columns: Mapping[str, str], key: str) -> list[Placed]:
    """The rows with the columns that `columns` names: from another column, or by a jinja template of the row's.

    Other columns stay. Raises AlignError, naming the row, for a column that is not there and for a template that
    cannot be filled; naming `key`, for one that is none.
    """
    for name, source in columns.items():
        if not isinstance(source, str) or not source:
            template = typed(f"{key}.{name}", "{{ column }}")
            raise AlignError(f"{key}.{name}={source}: write a column's name, or a template: {template}")
    makers = {name: _maker(source, key, name) for name, source in columns.items()}
    return [(place, {**row, **{name: make(place, row) for name, make in makers.items()}}) for place, row in rows]


def _maker(source: str, key: str, name: str) -> Callable[[str, dict], object]:
    said = f"{key}.{name}={source}"
    if "{{" not in source and "{%" not in source:

        def taken(place: str, row: dict) -> object:
            if source not in row:
                raise AlignError(
                    f"{place} has no column {source!r}, only {', '.join(map(str, row)) or 'none'}\n"
                    f"  {said} wants it: write {given_by(key, name, row, source)}"
                )
            return row[source]

        return taken
    try:
        template = ENVIRONMENT.from_string(source)
    except TemplateError as error:
        raise AlignError(f"{said} is no template: {error}\n  write text with {{{{ column }}}} in it") from error

    def filled(place: str, row: dict) -> str:
        try:
            return template.render(row)
        except (TemplateError, TypeError) as error:
            raise AlignError(f"{place}: {said} cannot be filled: {error}") from error

    return filled
