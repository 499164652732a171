"""Source of a stage's rows: the Protocol that every data set of a stage fulfils."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from align.data.tally import Tally
from align.errors import AlignError

PURPOSES = ("pretrain", "sft", "preferences", "best_of", "rm", "dpo", "kto", "ppo")
LIKE = {"preferences": "ppo", "best_of": "sft"}
"""Purposes whose rows are another's."""
GROUP = "group"
"""Column of rm by whose values the reward model's report is split, where a source has it."""


@dataclass
class Split:
    """Rows to train on, rows to watch and choose settings by, and rows that are only reported."""

    train: list[dict]
    eval: list[dict]
    test: list[dict] = field(default_factory=list)
    eval_swaps: list[dict] = field(default_factory=list)
    """Pairs of a right completion and another prompt's right completion in the same style, if the source has them."""
    test_swaps: list[dict] = field(default_factory=list)
    eval_path: str | None = None
    """File of the held-out rows, where one is named for them."""
    tallies: list[Tally] = field(default_factory=list)
    """Counts of rows that the source leaves out or changes."""


def check_held_out(tally: Tally, split: Split) -> None:
    """Raise AlignError where a file is named for held-out rows and none of them is left."""
    if split.eval_path is not None and tally.total and sum(tally.left_out.values()) == tally.total:
        raise AlignError(
            f"{tally.key}.data.eval_path={split.eval_path}: no held-out row is left\n  {'; '.join(tally.lines())}\n"
            f"  use another file, or leave it out: {tally.key}.data.eval_share then holds out rows"
        )


class Source(Protocol):
    """Rows for a purpose, which is one of PURPOSES and the stage's name in the configuration.

    What the rows hold: pretrain `text`; sft `prompt` and `completion`, or `text`, or `messages`;
    rm `chosen` and `rejected`, mostly `prompt`, sometimes `margin` or `share`, or `prompt`, `completions` and `ranks`,
    or `prompt`, `completion` and `rating`, each sometimes with `group`; dpo `prompt`, `chosen` and `rejected`;
    kto `prompt`, `completion` and `label`; ppo `prompt` and every other column that reward functions are
    handed; preferences as ppo, best_of as sft. A prompt is a string or a list of messages.

    It may also have `look(purpose)`: as `check`, but by the first rows alone, quickly and without torch.
    """

    def check(self, purpose: str) -> None:
        """Raise AlignError for all that can be known without a model: paths, columns, types, empty files."""
        ...

    def load(self, purpose: str, seed: int) -> Split: ...


def look(source: Source, purpose: str) -> None:
    """A first look at a source, where it has one."""
    if hasattr(source, "look"):
        source.look(purpose)
