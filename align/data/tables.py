"""Rows of csv and parquet files, each with the place it stands at."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from align.errors import AlignError

LONGEST_CELL = 2**31 - 1
BATCH = 1024


class Cell(str):
    """The text of a csv cell. A csv says no types: where a number or a label is wanted, it is read as one."""

    __slots__ = ()


def csv_rows(text: str, place: str) -> Iterator[tuple[str, dict]]:
    """Rows by the names in the first line; an empty cell is no value. Cells in quotes may hold line ends."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = next(reader, None)
        if names is None:
            return
        again = next((name for name in names if names.count(name) > 1), None)
        if again is not None:
            raise AlignError(f"{place} line 1 names the column {again!r} twice: write another name for one of them")
        begun = reader.line_num + 1
        for cells in reader:
            where, begun = f"{place} line {begun}", reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(names):
                raise AlignError(
                    f"{where} has {len(cells)} cells where the first line names {len(names)} columns: put cells that "
                    "hold commas, quotes or line ends into double quotes"
                )
            yield where, {name: Cell(cell) if cell else None for name, cell in zip(names, cells, strict=True)}
    except csv.Error as error:
        raise AlignError(f"{place} line {reader.line_num} is not csv ({error}): quote what holds quotes") from error


def parquet_rows(file: Path, place: str) -> Iterator[tuple[str, dict]]:
    """Rows in their order, a batch in memory at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            number = 0
            for batch in opened.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{place} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise AlignError(f"{place} cannot be read as parquet ({reason}): is it complete?") from error
