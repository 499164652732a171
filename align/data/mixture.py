r"""Several data sets as one, a task each, mixed by weight or temperature.

    align stages=[sft] model=FOLDER data@sft.data=mixture \
        +data@sft.data.parts.topic=prompt_completion sft.data.parts.topic.path=topics.jsonl \
        +data@sft.data.parts.mood=prompt_completion sft.data.parts.mood.path=moods.jsonl \
        sft.data.weights.topic=0.7 sft.data.weights.mood=0.3

A task's share is its weight's (1 where it has none beside others that have), or with a temperature T its number of rows
to the power 1 / T (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2): 1 mixes by size, the larger T the more evenly.
The column `task` of a row has its task.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from align.data.columns import is_number
from align.data.formats import NEUTRAL
from align.data.source import GROUP, Source, Split, look
from align.errors import AlignError

TASK = "task"


class Mixture:
    """A Source of Sources. Held-out rows are all of every part's; a reward model's report splits them by task, unless
    the parts say by what (`report_by`).

    `rows` is how many training rows are drawn; by default as many as can be without drawing one twice. With more, a
    part's rows are all drawn as often as each other, or once more.
    """

    def __init__(
        self,
        parts: Mapping[str, Source],
        weights: Mapping[str, float] | None = None,
        temperature: float | None = None,
        rows: int | None = None,
    ) -> None:
        self.parts = dict(parts)
        self.weights = dict(weights or {})
        self.temperature = temperature
        self.rows = rows

    def check(self, purpose: str) -> None:
        """Raise AlignError for what a part refuses, and for weights that name no part or sum to nothing."""
        self._each(purpose, lambda part: part.check(purpose))

    def look(self, purpose: str) -> None:
        self._each(purpose, lambda part: look(part, purpose))

    def load(self, purpose: str, seed: int) -> Split:
        key = f"{purpose}.data"
        found = self._each(purpose, lambda part: part.load(purpose, seed))
        if purpose == "rm":
            found = completed(found)
        self._check_alike({name: split.train[0] for name, split in found.items() if split.train}, key)
        for name, split in found.items():
            if not split.train:
                raise AlignError(
                    f"{key}.parts.{name}: the task has no rows to train on\n  use more rows, or leave it out"
                )
        counts = self.counts({name: len(split.train) for name, split in found.items()})
        train = [
            row for name, split in found.items() for row in drawn(split.train, counts[name], f"{seed}/{name}", name)
        ]
        random.Random(f"{seed}/mixture").shuffle(train)

        def all_of(part: str) -> list[dict]:
            rows = [{**row, TASK: name} for name, split in found.items() for row in getattr(split, part)]
            return [{GROUP: row[TASK], **row} for row in rows] if purpose == "rm" else rows

        tallies = [
            dataclasses.replace(one, noun=f"{one.noun} of {name}")
            for name, split in found.items() for one in split.tallies
        ]  # fmt: skip
        parts = (all_of(part) for part in ("eval", "test", "eval_swaps", "test_swaps"))
        return Split(train, *parts, tallies=tallies)

    def counts(self, sizes: dict[str, int]) -> dict[str, int]:
        """Rows of each task, whose parts have `sizes` of them; their shares are exact to one row."""
        share = self.shares(sizes)
        total = self.rows or math.floor(min(sizes[name] / share[name] for name in sizes if share[name]) + 1e-9)
        count = {name: math.floor(total * share[name] + 1e-9) for name in sizes}
        rest = sorted(sizes, key=lambda name: count[name] - total * share[name])
        for name in rest[: total - sum(count.values())]:
            count[name] += 1
        return count

    def shares(self, sizes: dict[str, int]) -> dict[str, float]:
        """Share of each task in the mixture, summing to 1."""
        if self.temperature is not None:
            weight = {name: size ** (1 / self.temperature) for name, size in sizes.items()}
        else:
            weight = {name: self.weights.get(name, 1.0) for name in sizes} if self.weights else dict(sizes)
        return {name: value / sum(weight.values()) for name, value in weight.items()}

    def _check_numbers(self, key: str) -> None:
        if not self.parts:
            raise AlignError(f"{key}=mixture has no parts\n  use +data@{key}.parts.NAME=prompt_completion")
        for name, value in self.weights.items():
            if name not in self.parts:
                near = difflib.get_close_matches(name, self.parts, n=1) or list(self.parts)[:1]
                raise AlignError(f"{key}.weights.{name}: there is no part {name}\n  nearest: {key}.weights.{near[0]}")
            if not (is_number(value) and value >= 0):
                raise AlignError(f"{key}.weights.{name}={value}: use a number from 0")
        if self.weights and not sum(self.weights.get(name, 1.0) for name in self.parts):
            raise AlignError(f"{key}.weights sum to nothing\n  use a weight above 0 for one part at least")
        if self.weights and self.temperature is not None:
            raise AlignError(f"{key}.temperature and {key}.weights both say how to mix\n  use one of them")
        if self.temperature is not None and not (is_number(self.temperature) and self.temperature > 0):
            raise AlignError(f"{key}.temperature={self.temperature}: use a number above 0, such as 2")
        if self.rows is not None and not (is_number(self.rows) and self.rows >= 1 and self.rows == int(self.rows)):
            raise AlignError(f"{key}.rows={self.rows}: use a whole number of rows, or null")

    def _check_alike(self, firsts: dict[str, dict], key: str) -> None:
        """Parts give one kind of row, since a trainer takes one."""
        kinds = {name: _kind(row) for name, row in firsts.items()}
        for name, kind in kinds.items():
            first = next(iter(kinds))
            if kind != kinds[first]:
                raise AlignError(
                    f"{key}.parts.{name} gives {kind} where {key}.parts.{first} gives {kinds[first]}\n"
                    "  use both in one way: the same columns, all as strings or all as messages"
                )

    def _each(self, purpose: str, do: Callable[[Source], Any]) -> dict[str, Any]:
        """Return the result of `do` for each part by its name; an AlignError names the part's own keys."""
        self._check_numbers(f"{purpose}.data")
        found = {}
        for name, part in self.parts.items():
            try:
                found[name] = do(part)
            except AlignError as error:
                own = f"{purpose}.data.parts.{name}"
                message = str(error).replace(f"{purpose}.data.", f"{own}.")
                raise AlignError(message.replace(f"data@{purpose}.data=", f"+data@{own}=")) from error
        return found


def drawn(rows: list[dict], count: int, seed: str, task: str) -> list[dict]:
    """`count` of the rows, each as often as the others or once more, with their task."""
    whole, rest = divmod(count, len(rows))
    chosen = rows * whole + random.Random(seed).sample(rows, rest)
    return [{**row, TASK: task} for row in chosen]


def by_task(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows of a mixture by their task, in order; {} for rows of no mixture."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        if TASK in row:
            found.setdefault(row[TASK], []).append(row)
    return found


def completed(parts: dict[str, Split]) -> dict[str, Split]:
    """Parts of pairs, all with `share` or `margin` if one has it; parts that have different ones stay as they are."""
    firsts = [split.train[0] for split in parts.values() if split.train]
    there = [name for name in NEUTRAL if any(name in row for row in firsts)]
    if len(there) != 1 or not all("chosen" in row for row in firsts):
        return parts
    usual = {there[0]: NEUTRAL[there[0]]}

    def all_with(split: Split) -> Split:
        names = ("train", "eval", "test", "eval_swaps", "test_swaps")
        lists = {name: [usual | row for row in getattr(split, name)] for name in names}
        return dataclasses.replace(split, **lists)

    return {name: all_with(split) for name, split in parts.items()}


def _kind(row: dict) -> str:
    content = row.get("prompt", row.get("chosen"))
    return " ".join(sorted(name for name in row if name != TASK)) + (
        " as messages" if isinstance(content, list) else ""
    )
