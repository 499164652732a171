"""`align table RUNS`: runs as rows, settings and figures as columns, chosen, sorted and averaged. Imports no torch."""

from __future__ import annotations

import argparse
import difflib
import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

import pandas as pd
from rich.console import Console

from align.errors import AlignError
from align.installed import require
from align.words import counted
from align_runs.compose import all_keys
from align_runs.runs import DONE, Run, read
from align_runs.settings import differing, shown
from align_runs.stages import is_headline, place

FORMATS = {".md": "markdown", ".csv": "csv", ".png": "png"}
WIDTH = 100
"""Letters in a line where there is no terminal: in a pipe or a file."""
UNFOLDED = 10_000
"""The same for columns that are named: a run stays in one line, for grep and cut."""
STATE = "state"
CARD = ".card"
"""Behind the name of a figure that is a setting's, too, of another value."""
EXAMPLES = """\
examples
  align table runs/tiny                                settings in which its runs differ, then their figures
  align table runs/tiny --over seed                    runs that differ in the seed alone: mean ± deviation
  align table 'runs/*/latest' --columns sft.eval_loss,ppo.kl --sort ppo.kl --to table.md
"""


@dataclass
class Table:
    first: str
    """The column of labels: `run` or `trial`; of groups `runs`, how many came to their end, 3 or `2 of 3`."""
    frame: pd.DataFrame
    """A row a run or a group of runs: its label, settings, figures (of a group the means) and `state`; NaN for a
    setting or figure that it lacks."""
    settings: list[str]
    figures: list[str]
    deviation: pd.DataFrame | None = None
    """Of a group's figures, of the sample (n − 1); NaN for one run."""
    count: pd.DataFrame | None = None
    """Runs of a group that have a figure."""
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Settings, figures, and how runs ended where one did not come to its end."""
        return [*self.settings, *self.figures, *([] if self.frame[STATE].eq(DONE).all() else [STATE])]


def table(words: list[str]) -> Table | None:
    """Settings and figures of many runs, side by side: RUNS --columns A,B --over seed --to FILE"""
    parser = _parser()
    if {"-h", "--help"} & set(words):
        return print(parser.format_help(), end="")
    given = parser.parse_args(words)
    form = _format(given.format, given.to)
    made = tabulate(read(given.runs), given.columns)
    if given.group is not None or given.over is not None:
        made = group(made, given.group, given.over)
    if given.sort:
        sort(made, given.sort, given.descending)
    _give(made, form, given.to, fitted=given.columns is None)
    return made


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise AlignError(f"table: {message}. Use {self.format_usage().removeprefix('usage: ').strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "align table", "align table RUNS [OPTIONS]", "Settings and figures of many runs, side by side.", EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folders of a run, a stage or many runs, or globs")

    def names(word: str) -> list[str]:
        return [name for name in word.split(",") if name]

    parser.add_argument("--columns", type=names, metavar="A,B", help="figures and settings by name, ppo.*, or all")
    parser.add_argument("--sort", metavar="COLUMN", help="order the rows by a column")
    parser.add_argument("--descending", action="store_true", help="the largest first")
    parser.add_argument("--over", type=names, metavar="KEY,…", help="average runs that differ in these settings alone")
    parser.add_argument("--group", type=names, metavar="KEY,…", help="average runs that are alike in these settings")
    parser.add_argument("--format", choices=("markdown", "csv"), help="print it so")
    parser.add_argument(
        "--to", type=lambda word: Path(word).expanduser(), metavar="FILE", help="save as .md, .csv, or a plot as .png"
    )
    return parser


def _format(form: str | None, to: Path | None) -> str | None:
    """The format by option or by the file's suffix; None is the terminal. Raises AlignError for what cannot be."""
    if to is None:
        return form
    by_suffix = FORMATS.get(to.suffix)
    if len({form, by_suffix} - {None}) != 1:
        option = "" if form is None else f" --format {form}"
        raise AlignError(f"table{option} --to {to}: the suffix gives the format. Use .md, .csv or .png.")
    if by_suffix == "png":
        require("matplotlib", f"table: --to {to}", f"--to {to.with_suffix('.md')}", extra="bench")
    if to.is_dir() or not to.absolute().parent.is_dir():
        problem = "it is a folder" if to.is_dir() else "its folder is not there"
        raise AlignError(f"table --to {to}: {problem}. Use a file in a folder that is there.")
    return form or by_suffix


def _give(made: Table, form: str | None, to: Path | None, fitted: bool) -> None:
    from align_runs.show import csv, fit, markdown, terminal

    console = Console(highlight=False)
    console.width = width_of(console, WIDTH if fitted else UNFOLDED)
    if form == "png":
        from align_runs.plot import plot

        plot(made, to)
    elif form is not None:
        text = {"markdown": markdown, "csv": csv}[form](made)
        print(text, end="") if to is None else to.write_text(text, encoding="utf-8")
    else:
        made = fit(made, console.width) if fitted else made
        for part in terminal(made, console.width):
            console.print(part)
    if to is not None:
        console.print(f"{counted(len(made.frame), 'row')} in {to}", markup=False, soft_wrap=True)
    for note in made.notes if form != "csv" or to is not None else []:
        console.print(note, markup=False, soft_wrap=True)


def width_of(console: Console, otherwise: int = UNFOLDED) -> int:
    """Letters in a line of the terminal; `otherwise` in a pipe or a file."""
    return console.width if console.is_terminal or "COLUMNS" in os.environ else otherwise


# -- columns ----------------------------------------------------------------------------------


def tabulate(runs: list[Run], columns: list[str] | None) -> Table:
    """A row a run: the settings in which they differ, then the named figures; None: the headlines.

    `columns` may name settings, too, patterns (`ppo.last.*`) and `all`. Raises AlignError for an unknown name.
    """
    keys = differing([run.settings for run in runs])
    every = list(dict.fromkeys(key for run in runs for key in run.settings))
    found = sorted(dict.fromkeys(name for run in runs for name in run.figures), key=place)
    names = {name: _column(name, runs) for name in found}
    notes: list[str] = []
    if columns is None:
        chosen = [name for name in found if name not in every and is_headline(name)]
    else:
        known = list(names.values())
        named = list(dict.fromkeys(name for word in columns for name in _named(word, known, every)))
        keys = list(dict.fromkeys([*keys, *(name for name in named if name in every)]))
        chosen = [name for name in named if name not in every]
        both = [name for name in named if f"{name}{CARD}" in known and f"{name}{CARD}" not in chosen]
        notes = [f"{name} is the setting; card.json has another value: --columns {name}{CARD}" for name in both]
    rows = [
        {names[name]: value for name, value in run.figures.items()}
        | {key: shown(key, run.settings[key]) for key in keys if key in run.settings}
        | {"run": run.label, STATE: run.state}
        for run in runs
    ]
    columns = list(dict.fromkeys(["run", *keys, *names.values(), STATE]))
    return Table("run", pd.DataFrame(rows, columns=columns, dtype=object), keys, chosen, notes=notes)


def _column(name: str, runs: list[Run]) -> str:
    """The column of a figure: its name, or NAME.card beside a setting of that name whose value it does not echo."""
    is_set = any(name in run.settings for run in runs)
    echoes = all(run.settings.get(name) == run.figures[name] for run in runs if name in run.figures)
    return name if echoes or not is_set else f"{name}{CARD}"


def _named(word: str, figures: list[str], settings: list[str]) -> list[str]:
    if word == "all":
        return figures
    if "*" in word and (found := [name for name in figures if fnmatchcase(name, word)]):
        return found
    return [resolve(word, list(dict.fromkeys([*figures, *settings])), "--columns")]


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
    near = ends or nearest(word, names or all_keys()) or names[:20]
    if word in near:
        raise AlignError(f"table {option} {word}: these runs do not differ in it. Leave it out.")
    problem = "several columns end so" if ends else "these runs have no such column"
    remedy = f"Use {', '.join(near[:-1])}{' or ' * (len(near) > 1)}{near[-1]}" if near else "No stage has ended"
    raise AlignError(f"table {option} {word}: {problem}. {remedy}.")


def nearest(word: str, names: list[str]) -> list[str]:
    """Names that may have been meant: with the same last part, much alike, or with a last part much alike."""
    last = word.rpartition(".")[2]
    lasts = difflib.get_close_matches(last, {name.rpartition(".")[2] for name in names}, n=2)
    found = [name for name in names if name.rpartition(".")[2] == last]
    found = found or difflib.get_close_matches(word, names, n=4, cutoff=0.5)
    return (found or [name for name in names if name.rpartition(".")[2] in lasts])[:6]


# -- rows -------------------------------------------------------------------------------------


def sort(table: Table, column: str, descending: bool = False) -> None:
    """Order the rows by a column, in place, numbers before words; those without a value come last."""
    name = resolve(column, [*table.settings, *table.figures], "--sort")
    table.frame = table.frame.sort_values(
        name, ascending=not descending, kind="stable",
        key=lambda cells: cells.map(lambda cell: (isinstance(cell, str), cell), na_action="ignore"),
    )  # fmt: skip


def group(table: Table, by: list[str] | None, over: list[str] | None) -> Table:
    """A row for the runs that are alike in the settings `by`, or in all in which any differ but those of `over`.

    A figure is the mean of the runs that have it, with the deviation of the sample.
    """
    over = [resolve(word, table.settings, "--over") for word in over or []]
    keys = [key for key in table.settings if key not in over]
    if by is not None:
        keys = [resolve(word, table.settings, "--group") for word in by]
    left = [key for key in table.settings if key not in (*keys, *over)]
    groups = table.frame.groupby(_number(table.frame, keys))
    mixed = [key for key in left if groups[key].nunique(dropna=False).gt(1).any()]
    notes = [f"the runs of a row differ in {', '.join([*over, *mixed])}"] if mixed else []
    done, size = groups[STATE].agg(lambda states: states.eq(DONE).sum()), groups.size()
    ended = groups[STATE].agg(lambda states: "; ".join(states[states.ne(DONE)].unique()) or DONE)
    labels = [str(n) if n == of else f"{n} of {of}" for n, of in zip(done, size, strict=True)]
    numbers = table.frame.drop(columns=[table.first, *table.settings, STATE]).astype(float)
    figures = numbers.groupby(_number(table.frame, keys))
    frame = groups.head(1)[keys].set_axis(size.index).join(figures.mean()).assign(**{"runs": labels, STATE: ended})
    return Table("runs", frame, keys, table.figures, figures.std(), figures.count(), [*table.notes, *notes])


def _number(frame: pd.DataFrame, keys: list[str]) -> pd.Series:
    """The group of each row, those that are alike in the settings `keys`, in the order of their first rows."""
    return frame.groupby(keys, sort=False, dropna=False).ngroup() if keys else pd.Series(0, frame.index)
