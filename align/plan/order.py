"""Stages of a run, and their order: who takes whose result, then which kinds come first, then as typed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from align.config.fields import nearest, shown
from align.errors import AlignError
from align.plan.spec import ALWAYS, JUDGED, StageSpec

METHODS = {
    "ipo": "IPO is a loss of dpo\n  use stages=[dpo] dpo.loss=ipo",
    "simpo": "TRL has SimPO among what it calls experimental, and align does not\n"
    "  nearest: stages=[dpo] dpo.loss=sigmoid_norm, by the length of each completion, too, but with a reference",
    "orpo": "TRL has ORPO among what it calls experimental, and align does not\n"
    "  nearest: stages=[dpo] dpo.loss=[sigmoid,sft], learning the chosen completion, too, but with a reference",
}
"""Methods by preferences that are no stage."""


def kind_of(name: str) -> str:
    """The kind of an instance: `rm` of `rm@2`."""
    return name.partition("@")[0]


def named_stages(stages: Any, specs: Mapping[str, StageSpec]) -> list[str]:
    """The instances that `stages` names, a list or one name. Raises AlignError for what is no stage."""
    given = [stages] if isinstance(stages, str) else stages
    example = f"use some of {', '.join(specs)}, such as stages=[sft,rm]"
    if not isinstance(given, list | tuple) or not given:
        raise AlignError(f"stages={shown(stages)}: {example}")
    here = f"stages={shown(stages)}"
    for name in given:
        kind = kind_of(str(name))
        if kind in METHODS:
            raise AlignError(f"{here}: there is no stage {name}: {METHODS[kind]}")
        if kind not in specs:
            raise AlignError(f"{here}: there is no stage {name}{nearest(str(name), specs, 0.4)}\n  {example}")
        if "@" in str(name) and not re.fullmatch(r"[1-9]\d*", str(name).partition("@")[2]):
            raise AlignError(f"{here}: a second instance has a number behind the @\n  use {kind}@2")
        if list(given).count(name) > 1:
            raise AlignError(f"{here} names {name} twice\n  use {name} once, or {name}@2 for a second one")
    return list(given)


def with_evaluation(named: list[str], specs: Mapping[str, StageSpec], judged: bool) -> list[str]:
    """The stages with the evaluation, which closes a run that has something to evaluate."""
    last = next((one.name for one in specs.values() if one.last), None)
    found = {specs[kind_of(name)].evaluated for name in named}
    wanted = ALWAYS in found or (judged and JUDGED in found)
    return [*named, last] if wanted and last is not None and last not in map(kind_of, named) else named


def ordered(named: list[str], specs: Mapping[str, StageSpec], takes: Mapping[str, set[str]]) -> list[str]:
    """The order in which the instances run; `takes` says whose results each takes.

    A kind that another one names in `after` comes before it, unless it takes that one's result. Otherwise it is as
    typed. Raises AlignError where two take each other's result.
    """
    left, found = list(named), []
    while left:
        free = [name for name in left if not takes.get(name, set()) & set(left) - {name}]
        if not free:
            raise AlignError(
                f"stages=[{','.join(named)}]: {' and '.join(left)} take each other's result\n"
                "  use a path for one of these inputs (runs/NAME/latest/STAGE), or another judge"
            )
        kinds = {kind_of(name) for name in left if not specs[kind_of(name)].last}
        first = [name for name in free if not _behind(name, left, specs, kinds)]
        found.append((first or free)[0])
        left.remove(found[-1])
    return found


def _behind(name: str, left: list[str], specs: Mapping[str, StageSpec], kinds: set[str]) -> bool:
    """Return True where a stage that is still to come goes before this one."""
    spec = specs[kind_of(name)]
    if spec.last:
        return bool(kinds)
    return bool(set(spec.after) & kinds - {spec.name})


def reordered(named: list[str], stages: list[str]) -> str:
    """A line for the terminal where `named` stages run in another order, that of `stages`; else ''."""
    run = [stage for stage in stages if stage in named]
    if run == named:
        return ""
    return (
        f"stages run as {' → '.join(run)}: a stage runs after those whose result it takes; for another order, run "
        "stages one after the other, actor.path=runs/NAME/latest/STAGE"
    )
