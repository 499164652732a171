"""Runs as rows, settings and figures as columns: chosen, sorted, and averaged over runs that are alike."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from align.errors import AlignError
from align.tables.figures import headlines, in_order, nearest_figures
from align.tables.runs import DONE, Run
from align.tables.settings import differing, shown

CARD = ".card"
"""Behind the name of a figure that is a setting's, too, of another value."""


@dataclass(frozen=True)
class Spread:
    """A figure of several runs."""

    mean: float
    deviation: float | None
    """Of the sample (n − 1); None for one run."""
    count: int

    def __lt__(self, other: Spread) -> bool:
        return self.mean < other.mean


@dataclass
class Row:
    label: str
    """Of a run; of a group, how many of its runs came to an end: `3`, or `2 of 3`."""
    state: str
    settings: dict[str, Any]
    figures: dict[str, float | Spread]


@dataclass
class Table:
    first: str
    """What the rows are: `run`, `runs`, `trial`."""
    settings: list[str]
    figures: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def cell(self, row: Row, column: str) -> Any:
        """A setting or figure; None where the row has none."""
        return row.settings.get(column) if column in self.settings else row.figures.get(column)


def tabulate(runs: list[Run], columns: list[str] | None) -> Table:
    """A row a run: the settings in which they differ, then the figures; of these the named ones, or a first look's.

    `columns` may name settings, too, patterns (`ppo.last.*`) and `all`. Raises AlignError for an unknown name.
    """
    keys = differing([run.settings for run in runs])
    every = list(dict.fromkeys(key for run in runs for key in run.settings))
    names = {name: _apart(name, runs) for name in in_order(list(dict.fromkeys(n for run in runs for n in run.figures)))}
    known, notes = list(names.values()), []
    if columns is None:
        chosen = [names[name] for name in headlines(list(names)) if names[name] not in every]
    else:
        named = list(dict.fromkeys(name for word in columns for name in _named(word, known, every, "--columns")))
        keys = list(dict.fromkeys([*keys, *(name for name in named if name in every)]))
        chosen = [name for name in named if name not in every]
        both = [name for name in named if f"{name}{CARD}" in known and f"{name}{CARD}" not in chosen]
        notes = [f"{name} is as it was set; card.json has another: --columns {name}{CARD}" for name in both]
    rows = [
        Row(
            run.label, run.state, {k: shown(k, run.settings[k]) for k in keys if k in run.settings},
            {names[name]: value for name, value in run.figures.items() if names[name] not in every},
        )
        for run in runs
    ]  # fmt: skip
    return Table("run", keys, chosen, rows, notes)


def _apart(name: str, runs: list[Run]) -> str:
    """The column of a figure: its name, or NAME.card beside a setting of that name whose value it does not echo."""
    is_set = any(name in run.settings for run in runs)
    echoes = all(run.settings.get(name) == run.figures[name] for run in runs if name in run.figures)
    return name if echoes or not is_set else f"{name}{CARD}"


def _named(word: str, figures: list[str], settings: list[str], option: str) -> list[str]:
    if word == "all":
        return figures
    if "*" in word:
        found = [name for name in figures if fnmatchcase(name, word)]
        return found or [resolve(word, figures, option)]
    return [resolve(word, list(dict.fromkeys([*figures, *settings])), option)]


def resolve(word: str, names: list[str], option: str) -> str:
    """The name that is meant: itself, or the only one that ends in it; of a plug, `group@name` as it is typed.

    Raises AlignError with what is near.
    """
    word = word.rpartition("@")[2]
    if word in names:
        return word
    ends = [name for name in names if name.endswith(f".{word}")]
    if len(ends) == 1:
        return ends[0]
    near = ends or nearest_figures(word, names)
    known = f"nearest: {', '.join(near)}" if near else f"one of: {', '.join(names[:20]) or 'none: no stage ended'}"
    what = "are several columns" if len(ends) > 1 else "is no column of these runs"
    raise AlignError(f"table: {option} {word} {what}\n  {known}")


def sort(table: Table, column: str, descending: bool) -> None:
    """Orders the rows by a column, in place; those without a value come last."""
    name = resolve(column, [*table.settings, *table.figures], "--sort")

    def key(row: Row) -> tuple[int, Any]:
        value = table.cell(row, name)
        return (1, str(value)) if isinstance(value, str) else (0, value)

    some = [row for row in table.rows if table.cell(row, name) is not None]
    none = [row for row in table.rows if table.cell(row, name) is None]
    table.rows = [*sorted(some, key=key, reverse=descending), *none]


def group(table: Table, by: list[str] | None, over: list[str] | None) -> Table:
    """A row for the runs that are alike in the settings `by`, or in all in which any differ but those of `over`.

    A figure is the mean of the runs that have it, with the deviation of the sample.
    """
    over = [resolve(word, table.settings, "--over") for word in over or []]
    keys = [key for key in table.settings if key not in over]
    if by is not None:
        keys = [resolve(word, table.settings, "--group") for word in by]
    alike: dict[tuple, list[Row]] = {}
    for row in table.rows:
        alike.setdefault(tuple(row.settings.get(key) for key in keys), []).append(row)
    left = [key for key in table.settings if key not in (*keys, *over)]
    mixed = [k for k in left if any(len({row.settings.get(k) for row in rows}) > 1 for rows in alike.values())]
    notes = [f"the runs of a row differ in {', '.join([*over, *mixed])}"] if mixed else []
    rows = [_averaged(rows, keys, table.figures) for rows in alike.values()]
    return Table("runs", keys, table.figures, rows, [*table.notes, *notes])


def _averaged(rows: list[Row], keys: list[str], figures: list[str]) -> Row:
    done = sum(row.state == DONE for row in rows)
    label = str(done) if done == len(rows) else f"{done} of {len(rows)}"
    state = "; ".join(dict.fromkeys(row.state for row in rows if row.state != DONE)) or DONE
    settings = {key: rows[0].settings[key] for key in keys if key in rows[0].settings}
    values = {name: [row.figures[name] for row in rows if name in row.figures] for name in figures}
    return Row(label, state, settings, {name: _spread(found) for name, found in values.items() if found})


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))
