"""A table as text: on the terminal, as markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column
from rich.table import Table as RichTable

from align.tables.runs import DONE
from align.tables.table import Row, Spread, Table

DIGITS = 4
GAP = 2
"""Blanks that a column of a rich table takes beside its words."""
STATE = ""
"""In the place of a column's key: how runs ended."""


def terminal(table: Table, width: int) -> list[RichTable]:
    """For rich, the stage above the figure's name; one below the other where the columns are wider than `width`."""
    names = shorten([*table.settings, *table.figures])
    heads = {key: name.replace(".", ".\n") for key, name in names.items()}
    cells = {key: [text(table.cell(row, key)) for row in table.rows] for key in names}
    if any(row.state != DONE for row in table.rows):
        heads[STATE], cells[STATE] = "state", [row.state for row in table.rows]
    labels = [row.label for row in table.rows]
    widths = {key: max(len(word) for word in [*heads[key].split("\n"), *cells[key]]) + GAP for key in heads}
    room = width - max(map(len, [table.first, *labels])) - GAP
    return [_part(table, labels, {key: heads[key] for key in keys}, cells) for keys in _parts(widths, room)]


def _parts(widths: dict[str, int], room: int) -> Iterable[list[str]]:
    """The columns in groups that fit into the room; one that fits nowhere stands alone, and is folded."""
    part: list[str] = []
    for key, width in widths.items():
        if part and sum(widths[one] for one in part) + width > room:
            yield part
            part = []
        part.append(key)
    yield part


def _part(table: Table, labels: list[str], heads: dict[str, str], cells: dict[str, list[str]]) -> RichTable:
    right = {key for key in heads if key != STATE and _numeric(table, key)}
    columns = [Column(escape(head), justify="right" if key in right else "left") for key, head in heads.items()]
    shown = RichTable(Column(table.first, no_wrap=True), *columns, box=SIMPLE, padding=0)
    for number, row in enumerate(table.rows):
        line = [labels[number], *(cells[key][number] for key in heads)]
        shown.add_row(*map(escape, line), style=None if row.state == DONE else "dim")
    return shown


def markdown(table: Table) -> str:
    names = shorten([*table.settings, *table.figures])
    ended = ["state"] if _ended(table) else []
    head = [table.first, *names.values(), *ended]
    rule = ["---", *("---:" if _numeric(table, key) else "---" for key in names), *("---" for _ in ended)]
    rows = [
        [row.label, *(text(table.cell(row, key)) for key in names), *(row.state for _ in ended)] for row in table.rows
    ]
    return "".join(f"| {' | '.join(_cell(word) for word in line)} |\n" for line in [head, rule, *rows])


def csv_text(table: Table) -> str:
    """Whole dotted names and unrounded numbers; of a group the mean, the deviation and the count apart."""
    grouped = any(isinstance(value, Spread) for row in table.rows for value in row.figures.values())
    parts = ("mean", "deviation", "count") if grouped else ()
    figures = [f"{name}.{part}" if part else name for name in table.figures for part in parts or ("",)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([table.first, *table.settings, *figures, "state"])
    for row in table.rows:
        settings = [row.settings.get(key, "") for key in table.settings]
        writer.writerow([row.label, *settings, *_numbers(row, table.figures, parts), row.state])
    return file.getvalue()


def _numbers(row: Row, figures: list[str], parts: Iterable[str]) -> Iterable[Any]:
    for name in figures:
        value = row.figures.get(name)
        found = [getattr(value, part, None) for part in parts] or [value]
        yield from ("" if one is None else one for one in found)


def shorten(keys: list[str]) -> dict[str, str]:
    """Each key by its shortest end that no other key has.

    >>> shorten(["sft.learning_rate", "sft.peft.r", "sft.eval_loss", "rm.eval_loss"])
    {'sft.learning_rate': 'learning_rate', 'sft.peft.r': 'r', 'sft.eval_loss': 'sft.eval_loss', 'rm.eval_loss': 'rm.eval_loss'}
    """  # noqa: E501
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [f".{other}" for other in keys if other != key]
        short[key] = next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), key)
    return short


def text(value: Any) -> str:
    """A cell: numbers to four digits, mean ± deviation of several runs."""
    if isinstance(value, Spread):
        deviation = "" if value.deviation is None else f" ± {value.deviation:.2g}"
        return f"{text(value.mean)}{deviation}"
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return "" if value is None else str(value)


def _numeric(table: Table, key: str) -> bool:
    return not any(isinstance(table.cell(row, key), str) for row in table.rows)


def _ended(table: Table) -> bool:
    return any(row.state != DONE for row in table.rows)


def _cell(word: str) -> str:
    return word.replace("|", "\\|").replace("\n", " ")
