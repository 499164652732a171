"""A table as text: on the terminal, as markdown, as CSV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column
from rich.table import Table as RichTable

from align.words import counted
from align_runs.runs import DONE
from align_runs.stages import is_merit, place
from align_runs.table import STATE, Table

DIGITS = 4
GAP, EDGES = 1, 2
"""Blanks between columns, and at both ends of a line."""


def fit(table: Table, width: int) -> Table:
    """The table with as many columns as fit: one figure, the settings, the other figures; a note counts the rest.

    Figures by which a search would go come before others, those of late stages before those of early ones.
    """
    widths = _widths(table, width)
    room = width - widths.pop(table.first) - widths.pop(STATE, 0)
    figures = sorted(table.figures, key=lambda name: (not is_merit(name), -place(name)))
    chosen: list[str] = []
    for name in [*figures[:1], *table.settings, *figures[1:]]:
        if not chosen or widths[name] <= room:
            chosen.append(name)
            room -= widths[name]
    settings, figures = ([name for name in columns if name in chosen] for columns in (table.settings, table.figures))
    more = len(set(table.frame) - {table.first, STATE, *chosen})
    notes = [f"{counted(more, 'more column')}: --columns all"] if more else []
    return replace(table, settings=settings, figures=figures, notes=[*table.notes, *notes])


def terminal(table: Table, width: int) -> Iterator[RichTable]:
    """For rich, the stage above the figure's name; one below the other where the columns are wider than `width`."""
    names = shorten([*table.settings, *table.figures])
    widths = _widths(table, width)
    parts: list[list[str]] = [[]]
    for key in table.columns:
        if parts[-1] and sum(widths[one] for one in (table.first, *parts[-1], key)) > width:
            parts.append([])
        parts[-1].append(key)
    for part in parts:
        yield _part(table, part, names, width)


def _widths(table: Table, width: int) -> dict[str, int]:
    """Letters that each column takes, its gap included; how runs ended is folded to a quarter of the width."""
    names = shorten([*table.settings, *table.figures])
    found = {}
    for key in (table.first, *table.columns):
        letters = max(map(len, [*names.get(key, key).replace(".", ".\n").split("\n"), *_cells(table, key)]))
        found[key] = (min(letters, width // 4) if key == STATE else letters) + (EDGES if key == table.first else GAP)
    return found


def _part(table: Table, keys: list[str], names: dict[str, str], width: int) -> RichTable:
    shown = RichTable(Column(table.first, no_wrap=True), box=SIMPLE, padding=0)
    for key in keys:
        shown.add_column(
            escape(names.get(key, key).replace(".", ".\n")),
            justify="right" if _numeric(table, key) else "left",
            max_width=width // 4 if key == STATE else None,
        )
    cells = [_cells(table, key) for key in (table.first, *keys)]
    for row, state in zip(zip(*cells, strict=True), table.frame[STATE], strict=True):
        shown.add_row(*map(escape, row), style=None if state == DONE else "dim")
    return shown


def markdown(table: Table) -> str:
    names = shorten([*table.settings, *table.figures])
    keys = [table.first, *table.columns]
    rule = ["---:" if key in names and _numeric(table, key) else "---" for key in keys]
    rows = zip(*(_cells(table, key) for key in keys), strict=True)
    lines = [[names.get(key, key) for key in keys], rule, *rows]
    return "".join(f"| {' | '.join(word.replace('|', chr(92) + '|').replace(chr(10), ' ') for word in line)} |\n"
                   for line in lines)  # fmt: skip


def csv(table: Table) -> str:
    """Whole dotted names and unrounded numbers; of a group the mean, the deviation and the count apart."""
    if table.deviation is None:
        figures = table.frame[table.figures]
    else:
        parts = {"mean": table.frame, "deviation": table.deviation, "count": table.count}
        figures = pd.DataFrame(
            {f"{name}.{part}": frame[name] for name in table.figures for part, frame in parts.items()}
        )
    frame = table.frame[[table.first, *table.settings]].join(figures).join(table.frame[STATE])
    return frame.to_csv(index=False, lineterminator="\n")


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


def text(value: Any, deviation: float = float("nan")) -> str:
    """A cell: a number to four digits, with its deviation if it has one; '' for what is not there."""
    if pd.isna(value):
        return ""
    spread = "" if pd.isna(deviation) else f" ± {deviation:.2g}"
    return (f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)) + spread


def _cells(table: Table, key: str) -> list[str]:
    if table.deviation is not None and key in table.figures:
        return [text(*pair) for pair in zip(table.frame[key], table.deviation[key], strict=True)]
    return [text(value) for value in table.frame[key]]


def _numeric(table: Table, key: str) -> bool:
    return not any(isinstance(value, str) for value in table.frame[key])
