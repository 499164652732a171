"""`align table RUNS…`: what runs were set to and what came out of them, side by side. Imports no torch."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from align.errors import AlignError
from align.installed import require
from align.tables.runs import read
from align.tables.show import csv_text, markdown, terminal
from align.tables.table import Table, group, sort, tabulate

TEXTS = {"markdown": markdown, "csv": csv_text}
SUFFIXES = {".md": "markdown", ".csv": "csv", ".png": "png"}
UNFOLDED = 10_000
"""Columns of what is no terminal: a pipe or a file."""
USE = (
    "align table RUNS… [--columns A,B] [--sort COLUMN] [--over seed] [--group KEY] [--format markdown|csv] [--to FILE]"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise AlignError(f"table: {message}\n  write {USE}")


def table(words: list[str]) -> Table:
    """Does what the words after `align table` say; the table. Raises AlignError for bad words before it writes."""
    parser = _Parser(prog="align table", add_help=False, allow_abbrev=False)
    parser.add_argument("runs", nargs="+")
    for option in ("--columns", "--group", "--over"):
        parser.add_argument(option, type=lambda word: [name for name in word.split(",") if name])
    parser.add_argument("--sort")
    parser.add_argument("--descending", action="store_true")
    parser.add_argument("--format", choices=TEXTS)
    parser.add_argument("--to", type=lambda word: Path(word).expanduser())
    given = parser.parse_args(words)
    form = _format(given.format, given.to)
    made = tabulate(read(given.runs), given.columns)
    if given.group is not None or given.over is not None:
        made = group(made, given.group, given.over)
    if given.sort:
        sort(made, given.sort, given.descending)
    _give(made, form, given.to)
    return made


def _format(form: str | None, to: Path | None) -> str | None:
    """How the table is written: asked for, or by the file's suffix; None is the terminal. Refuses what cannot be."""
    if to is None:
        return form
    by_suffix = SUFFIXES.get(to.suffix)
    if len({form, by_suffix} - {None}) != 1:
        asked = "" if form is None else f" --format {form}"
        raise AlignError(f"table:{asked} --to {to}: write a file that ends in .md, .csv or .png")
    if by_suffix == "png":
        require("matplotlib", f"table: --to {to}", f"--to {to.with_suffix('.md')}", extra="bench")
    if to.is_dir() or not to.absolute().parent.is_dir():
        why = "is a folder" if to.is_dir() else "lies in no folder that is there"
        raise AlignError(f"table: --to {to} {why}\n  write a file in a folder of yours")
    return form or by_suffix


def _give(made: Table, form: str | None, to: Path | None) -> None:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNFOLDED
    if form == "png":
        from align.tables.plot import plot

        plot(made, to)
    elif form is not None and to is not None:
        to.write_text(TEXTS[form](made), encoding="utf-8")
    elif form is not None:
        print(TEXTS[form](made), end="")
    else:
        for part in terminal(made, console.width):
            console.print(part)
    if to is not None:
        console.print(f"{len(made.rows)} rows in {to}", markup=False, soft_wrap=True)
    for note in made.notes if form != "csv" or to is not None else []:
        console.print(note, markup=False, soft_wrap=True)
