"""The rows of a file or of a hub data set, each with the place it stands at."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

from align.errors import AlignError
from align.library_variables import without_network

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
"""Of files that are read; all but parquet may have .gz behind."""

Placed = tuple[str, dict]
"""A row with its place, `sft.data.path=pairs.jsonl line 3`, which every message about the row begins with."""


def read_rows(path: str, split: str, key: str, most: int | None = None) -> list[Placed]:
    """All rows of a file, or of split `split` of a hub data set if `path` is no file but looks like its name.

    With `most` the first ones alone: a hub data set is then read as a stream, no further than that. `key` is the
    configuration key that holds `path`. Raises AlignError for a path that is missing or of another kind, for a broken
    line, for a row that is not an object and where there are no rows.
    """
    file = Path(path).expanduser()
    place = f"{key}={path}"
    if file.is_file():
        rows = _from_file(file, place, most)
    elif file.exists():
        raise AlignError(f"{place} is a folder: use {key}=FILE, a file that ends in {_listed(SUFFIXES)}")
    elif on_hub(path):
        rows = _from_hub(path, split, place, most)
    else:
        raise AlignError(
            f"{place}: there is no such file (looked for {file.absolute()}): use {key}=FILE, or the name of a "
            "hub data set such as org/name"
        )
    if not rows:
        raise AlignError(f"{place} holds no rows: use {key}=FILE with one object a row")
    return rows


def on_hub(path: str) -> bool:
    """Return True for `org/name` without a file's suffix, if no file; `org/name-v1.0` has none: a suffix is letters."""
    if Path(path).expanduser().exists():
        return False
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path) is not None and not re.search(r"\.[A-Za-z]+$", path)


def _from_hub(name: str, split: str, place: str, most: int | None) -> list[Placed]:
    from datasets import load_dataset

    without_network()
    try:
        streamed = {} if most is None else {"streaming": True}
        rows = list(islice(load_dataset(name, split=split, **streamed), most))
    # load_dataset raises whatever its downloads, builders and file systems raise; the cause is kept and shown.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AlignError(
            f"{place} is no file here, and as a hub data set its split {split!r} could not be loaded "
            f"({reason}): use the path of a file that ends in {_listed(SUFFIXES)}, or check name, split and network"
        ) from error
    return [(f"{place} row {number}", ununited(row)) for number, row in enumerate(rows, start=1)]


def _from_file(file: Path, place: str, most: int | None) -> list[Placed]:
    """The rows of a file, which is read and parsed once for a stage's checks and its run."""
    stat = file.stat()
    return [(where, dict(row)) for where, row in _parsed(file, place, most, stat.st_mtime_ns, stat.st_size)]


@lru_cache(maxsize=8)  # of stages whose checks come first and whose runs come later
def _parsed(file: Path, place: str, most: int | None, changed: int, size: int) -> list[Placed]:
    name = file.name.lower()
    kind = next((suffix for suffix in SUFFIXES if name.removesuffix(".gz").endswith(suffix)), None)
    if kind is None or (kind == ".parquet" and name.endswith(".gz")):
        raise AlignError(f"{place} is no table: use a file that ends in {_listed(SUFFIXES)} (.gz behind a text file)")
    values: Iterable[tuple[str, object]]
    if kind == ".parquet":
        values = parquet_rows(file, place)
    else:
        values = {".jsonl": _lines, ".json": _items, ".csv": csv_rows}[kind](_text(file, place), place)
    return [(where, _object(where, value)) for where, value in islice(values, most)]


def _text(file: Path, place: str) -> str:
    """The file's text, without a byte order mark and with its line ends as they are."""
    try:
        data = file.read_bytes()
        if file.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise AlignError(f"{place} cannot be read ({error}): is it complete, and a gzip file if named .gz?") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AlignError(f"{place} line {line} is not UTF-8 ({error.reason}): save the file as UTF-8") from error


def _lines(text: str, place: str) -> Iterator[tuple[str, object]]:
    # Not splitlines: a line separator such as U+2028 may stand inside a json string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{place} line {number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise AlignError(
                f"{where} is not json ({error.msg} at column {error.colno}): use one object a line"
            ) from error


def _items(text: str, place: str) -> list[tuple[str, object]]:
    if not text.strip():
        return []
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "name a file with one object a line .jsonl" if error.msg == "Extra data" else "use a list of objects"
        raise AlignError(
            f"{place} line {error.lineno} is not json ({error.msg} at column {error.colno}): {hint}"
        ) from error
    if not isinstance(values, list):
        raise AlignError(f"{place} holds {_kind(values)}: use a list of objects, or one object a line in .jsonl")
    return [(f"{place} row {number}", value) for number, value in enumerate(values, start=1)]


def _object(where: str, value: object) -> dict:
    if not isinstance(value, dict):
        raise AlignError(f'{where} is {_kind(value)}, not an object: use {{"column": value, …}}')
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1]


LONGEST_CELL = 2**31 - 1
BATCH = 1024


class Cell(str):
    """The text of a csv cell. A csv has no types: where a number or a label is wanted, the text is read as one."""

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
            raise AlignError(f"{place} line 1 names the column {again!r} twice: use another name for one of them")
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
                    yield f"{place} row {number}", ununited(row)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise AlignError(f"{place} cannot be read as parquet ({reason}): is it complete?") from error


def ununited(row: dict) -> dict:
    """The row without the nulls that a table of typed columns adds to messages and tools: one row's keys are all rows'.

    >>> ununited({"messages": [{"role": "user", "content": "Hi", "name": None}], "topic": None})
    {'messages': [{'role': 'user', 'content': 'Hi'}], 'topic': None}
    """
    return {name: _without_nulls(value) if _united(name, value) else value for name, value in row.items()}


def _united(name: str, value: object) -> bool:
    """Return True for messages, lists of them, and tools."""
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return name == "tools" or (
        isinstance(value, list) and any(isinstance(one, dict) and "role" in one for one in value)
    )


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
