"""The words of a search: its own, spaces, and settings that are the same in every trial."""

from __future__ import annotations

import difflib
import shlex
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import ValueType

from align.errors import AlignError
from align.search.space import Asked, Space, parse, space_of

SAMPLERS = ("tpe", "random", "gp")
PRUNERS = ("median", "hyperband", "none")
DIRECTIONS = ("minimize", "maximize")
OWN = ("trials", "objective", "direction", "name", "sampler", "pruner")
NOT_SEARCHED = ("name", "runs", "stages", "hydra")
EXAMPLE = "align search experiment=tiny 'sft.learning_rate=log(1e-4,1e-1)' trials=20"


@dataclass
class Plan:
    fixed: list[str]
    """As typed; `seed` among them, which also seeds the sampler."""
    spaces: list[Space]
    trials: int = 20
    """In all, those of an earlier call included."""
    objective: str | None = None
    """A figure of `align table`; None: the held-out score of the last stage that trains."""
    direction: str | None = None
    """minimize or maximize; None: by the figure's name."""
    name: str | None = None
    """Of the search, a folder under `runs`; None: that of the runs, with _search."""
    sampler: str = "tpe"
    """tpe (tree of Parzen estimators), random, or gp (a Gaussian process, which needs scipy)."""
    pruner: str = "median"
    """Ends trials whose figures on the way are poor: median, hyperband or none."""


def read(words: list[str]) -> Plan:
    """Raises AlignError for what is no search, Hydra's errors for what it cannot read."""
    plan = Plan([], [])
    given: dict[str, Any] = {}
    for word in words:
        if word.startswith("-"):
            raise AlignError(f"search: {word}: a search has no flags; yaml of your own is found in ./conf\n  {EXAMPLE}")
        override = parse(word)
        key = override.get_key_element()
        if key.lstrip("+") in given:
            raise AlignError(f"search: {key} is given twice\n  write it once, as a value or as a space")
        given[key.lstrip("+")] = override.value()
        if override.value_type in (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
            instead = shlex.quote(f"{key}=choice({word.partition('=')[2]})")
            raise AlignError(f"search: {word} are several values\n  write {instead}, or align -m for all")
        if key in OWN:
            _own(plan, key, override.value(), word)
        elif isinstance(override._value, Asked):
            plan.spaces.append(space_of(word, override))
        else:
            _refuse_near_miss(key)
            plan.fixed.append(word)
    for space in plan.spaces:
        if space.name.partition(".")[0] in NOT_SEARCHED:
            raise AlignError(
                f"search: {space.name}={space.text}: it is the same in every trial\n"
                "  write a value, or make a search for each"
            )
    if not plan.spaces:
        raise AlignError(f"search: there is nothing to search\n  write a space, as in {EXAMPLE}")
    return plan


def _own(plan: Plan, key: str, value: Any, word: str) -> None:
    choices = {"sampler": SAMPLERS, "pruner": PRUNERS, "direction": DIRECTIONS}
    if isinstance(value, Asked) or value in (None, ""):
        raise AlignError(f"search: {word}: {key} is a word of the search's own\n  write a value, as in {EXAMPLE}")
    if key == "trials" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise AlignError(f"search: {word}: write a whole number of 1 or more")
    if key in choices and value not in choices[key]:
        raise AlignError(f"search: {word}: write one of {', '.join(choices[key])}")
    if key == "name" and (set("/\\") & set(str(value)) or str(value).startswith(".")):
        raise AlignError(f"search: {word} names a folder: write it without slashes, not beginning with a dot")
    setattr(plan, key, value if key == "trials" else str(value))


def _refuse_near_miss(key: str) -> None:
    """A word of the search's own with a slip of the hand; other unknown keys are told of by Hydra."""
    near = difflib.get_close_matches(key, OWN, n=1, cutoff=0.8)
    if near and key != "runs":
        raise AlignError(
            f"search: {key}: there is no such word\n  nearest: {near[0]}; the search's own: {', '.join(OWN)}"
        )
