"""Rows of a user's own file or of a hub data set, some of them held out: `data@sft.data=…` with a path."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from align.data.columns import is_number, renamed
from align.data.formats import Record, check_columns, meanings, shape, understand
from align.data.reading import Placed, on_hub, read_rows
from align.data.source import LIKE, Source, Split
from align.data.tally import SHARED, Tally
from align.errors import AlignError

FIRST = 100
"""Rows that a first look reads."""


class FileData:
    """A Source that reads json, jsonl, csv (each also .gz), parquet or a hub data set, in one of `formats.FORMATS`.

    Held out are the rows of `eval_path`, else those whose prompt's hash falls under `eval_share`: equal
    prompts land on one side, the side does not depend on the order, the seed or the stage, and there is
    a row on either side (but for eval_share=0). `split` names the split of a hub data set.
    """

    def __init__(
        self,
        format: str,
        path: str | list[str] | None,
        split: str = "train",
        eval_path: str | None = None,
        eval_share: float = 0.05,
        eval_shared: str = "keep",
        columns: dict[str, str] | None = None,
        rows: int | None = None,
        report_by: str | None = None,
    ) -> None:
        self.format = format
        self.path = str(path) if isinstance(path, int | float) else path  # a file may be called 2024
        self.split = split
        self.eval_path = eval_path
        self.eval_share = eval_share
        self.eval_shared = eval_shared
        self.columns = columns or {}
        self.rows = rows
        self.report_by = report_by

    def check(self, purpose: str) -> None:
        """Raise AlignError unless the rows can be loaded; reads them all, since any may be broken."""
        self.load(purpose, seed=0)

    def look(self, purpose: str) -> None:
        """Raise AlignError for what settings and the first rows tell; a data set on the hub is left alone."""
        self._check_settings(purpose)
        for name, path in (("path", self.path), ("eval_path", self.eval_path)):
            if path is not None and not on_hub(path):
                rows = self._rows(path, f"{purpose}.data.{name}", purpose, min(self.rows or FIRST, FIRST))
                meanings(rows, self.format, purpose, self.report_by)

    def load(self, purpose: str, seed: int) -> Split:
        """The rows for a purpose; `seed` changes nothing, so that runs of a sweep hold out the same rows."""
        self._check_settings(purpose)
        if self.eval_path is not None:
            return self._two_files(purpose)
        tallies: list[Tally] = []
        rows = self._read(self.path, f"{purpose}.data.path", purpose, tallies)
        train, held_out = hold_out(rows, self.eval_share, purpose)
        return replace(_split(train, held_out, purpose), tallies=tallies)

    def _check_settings(self, purpose: str) -> None:
        if not (is_number(self.eval_share) and 0 <= self.eval_share < 1):
            raise AlignError(
                f"{purpose}.data.eval_share={self.eval_share}: use a number from 0 to below 1, such as 0.05"
            )
        if self.rows is not None and not (type(self.rows) is int and self.rows >= 1):
            raise AlignError(f"{purpose}.data.rows={self.rows}: use a whole number from 1, or null for all")
        if self.report_by is not None and purpose != "rm":
            raise AlignError(
                f"{purpose}.data.report_by={self.report_by}: only a reward model has this report\n"
                "  use rm.data.report_by, or leave it out"
            )
        if self.path is None:
            raise AlignError(
                f"{purpose}.data.path is not set: use {purpose}.data.path=FILE (or data.path=FILE, which all "
                "stages take over)"
            )
        if isinstance(self.path, list):
            raise AlignError(
                f"{purpose}.data.path={self.path}: use one file, {purpose}.data.path=FILE (SFT alone takes a list)"
            )
        check_columns(self.columns, self.format, purpose, self.report_by)

    def _two_files(self, purpose: str) -> Split:
        key = f"{purpose}.data.eval_path"
        if Path(self.eval_path).expanduser().absolute() == Path(self.path).expanduser().absolute():
            raise AlignError(
                f"{key}={self.eval_path} is {purpose}.data.path, too, and held-out rows must not be trained on: "
                f"use another file, or leave it out ({purpose}.data.eval_share then holds out rows)"
            )
        tallies: list[Tally] = []
        train = self._read(self.path, f"{purpose}.data.path", purpose, tallies)
        held_out = self._read(self.eval_path, key, purpose, also := [])
        known = {row.identity for row in train}
        total, others = len(held_out), [row for row in held_out if row.identity not in known]
        shared = {SHARED: total - len(others)}
        tallies += [replace(one, noun="held-out rows") for one in also]
        if self.eval_shared == "leave_out":
            tallies.append(Tally(total, shared, {}, purpose, noun="held-out rows"))
            if not others:
                raise AlignError(
                    f"{key}={self.eval_path}: every prompt in it is trained on, too, and none is left\n"
                    f"  use another file, or {purpose}.data.eval_shared=keep"
                )
            held_out = others
        else:
            tallies.append(Tally(total, {}, shared, purpose, noun="held-out rows"))
        if shape(train[0], purpose) != shape(held_out[0], purpose):
            raise AlignError(
                f"{key}={self.eval_path} gives {shape(held_out[0], purpose)} where {purpose}.data.path={self.path} "
                f"gives {shape(train[0], purpose)}: use both files alike"
            )
        return replace(_split(train, held_out, purpose), eval_path=self.eval_path, tallies=tallies)

    def _read(self, path: str, key: str, purpose: str, tallies: list[Tally]) -> list[Record]:
        return understand(self._rows(path, key, purpose, self.rows), self.format, purpose, self.report_by, tallies)

    def _rows(self, path: str, key: str, purpose: str, most: int | None) -> list[Placed]:
        rows = read_rows(path, self.split, key, most)
        return renamed(rows, self.columns, f"{purpose}.data.columns")


def hold_out(rows: list[Record], share: float, purpose: str) -> tuple[list[Record], list[Record]]:
    """Rows to train on and rows held out, by the hash of each row's identity."""
    if share == 0:
        return rows, []
    places = {row.identity: _place(row.identity) for row in rows}
    ordered = sorted(places, key=places.get)
    if len(ordered) < 2:
        raise AlignError(
            f"{purpose}.data.path: all {len(rows)} rows have one prompt, so that none can be held out: use "
            f"{purpose}.data.eval_share=0, or {purpose}.data.eval_path=FILE"
        )
    # The first in the order is always held out and the last never, however few rows there are.
    held_out = {key for key in ordered[1:-1] if places[key] < share} | {ordered[0]}
    return (
        [row for row in rows if row.identity not in held_out],
        [row for row in rows if row.identity in held_out],
    )


def _place(identity: str) -> float:
    """Position of a text between 0 and 1, the same in every process."""
    # A lone surrogate, which json can hold, has no UTF-8.
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split(train: list[Record], held_out: list[Record], purpose: str) -> Split:
    rows = [row.row for row in train]
    others = [row.row for row in held_out]
    if LIKE.get(purpose, purpose) == "ppo":
        # Reward functions are handed each column as one list, so that all rows need the same columns.
        columns = dict.fromkeys(column for row in rows + others for column in row)
        rows, others = ([{name: row.get(name) for name in columns} for row in part] for part in (rows, others))
    return Split(train=rows, eval=others, test=list(others))


RANKINGS, HELD_OUT = "rankings.jsonl", "held_out.jsonl"
AUTO = "auto"


class Sampled:
    """A Source of a preferences stage's folder; `auto`: of this run, which is to write it yet."""

    def __init__(self, path: str = AUTO) -> None:
        self.path = path

    def check(self, purpose: str) -> None:
        if self.path != AUTO:
            self._files(purpose).check(purpose)

    def look(self, purpose: str) -> None:
        if self.path != AUTO:
            self._files(purpose).look(purpose)

    def load(self, purpose: str, seed: int) -> Split:
        return self._files(purpose).load(purpose, seed)

    def _files(self, purpose: str) -> FileData:
        folder = Path(self.path).expanduser()
        if not (folder / RANKINGS).is_file():
            raise AlignError(
                f"{purpose}.data.path={self.path}: there is no {RANKINGS} in it\n  use {purpose}.data.path="
                "runs/NAME/latest/preferences, a folder of that stage"
            )
        held_out = folder / HELD_OUT
        several = (folder / RANKINGS).read_text(encoding="utf-8").count("\n") > 1
        share = 0.05 if several and not held_out.exists() else 0.0
        return FileData(
            "rankings", str(folder / RANKINGS), eval_path=str(held_out) if held_out.exists() else None, eval_share=share
        )


def unwritten(data: Source | list[Source]) -> bool:
    """Return True where this run's stage `preferences` makes the data."""
    return isinstance(data, Sampled) and data.path == AUTO


def located(data: Source, inputs: dict[str, str]) -> Source:
    """The data, from where this run's stage `preferences` has written them where they come from there."""
    return Sampled(inputs["samples"]) if "samples" in inputs else data
