"""The words of a search: its own, spaces, and settings that are the same in every trial; checked before any trial."""

from __future__ import annotations

import difflib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ValueType
from omegaconf import OmegaConf

from align.config.leaves import leaves
from align.errors import AlignError
from align_runs.compose import stages_of_run
from align_runs.runs import figures, stages_of
from align_runs.space import Call, Space, parse, space_of
from align_runs.stages import check_objective, direction, evaluations, keep_test_rows, merit
from align_runs.table import nearest
from align_runs.trials import Trials, checked

CHOICES = {
    "sampler": ("tpe", "random", "gp"),
    "pruner": ("median", "hyperband", "none"),
    "direction": ("minimize", "maximize"),
}
OWN = ("trials", "objective", "direction", "name", "sampler", "pruner")
NOT_SEARCHED = ("name", "runs", "stages", "hydra")
EXAMPLE = "align search experiment=tiny 'sft.learning_rate=log(1e-4,1e-1)' trials=20"
CPU_LINEAR = "cpu_linear"


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


@dataclass(frozen=True)
class Objective:
    figure: str
    direction: str

    @property
    def stage(self) -> str:
        return self.figure.partition(".")[0]

    def value(self, run: Path) -> float:
        """The figure of a run that came to its end. Raises AlignError where there is none."""
        found = figures(run, stages_of(run))
        if self.figure not in found:
            near = ", ".join(nearest(self.figure, list(found)))
            raise AlignError(f"objective={self.figure}: a run came to its end without this figure. Use one of {near}.")
        return found[self.figure]


@dataclass
class Search:
    plan: Plan
    trials: Trials
    objective: Objective
    home: Path
    added: list[str]
    """Settings that the search adds to those that were typed."""
    seed: int
    """The sampler's."""
    unpruned: str
    """Why trials cannot be pruned; '' where they can."""
    identity: dict[str, Any]
    """What makes it this search and no other: objective, spaces, settings."""
    one_kernel: bool
    """cpu_linear is left to the search."""

    def folder(self, number: int) -> Path:
        return self.home / f"trial_{number}"

    def words(self, drawn: list[str], number: int, kernel: str | None) -> list[str]:
        """All settings of a trial."""
        fixed = [word for word in self.plan.fixed if not word.startswith("runs=")]
        place = str(self.home).replace("\\", "\\\\").replace("'", "\\'")
        chosen = [f"{CPU_LINEAR}={kernel}"] if kernel else []
        return [*fixed, *self.added, *chosen, *drawn, f"runs='{place}'", f"name={self.folder(number).name}"]

    def command(self, drawn: list[str]) -> str:
        """A trial as a command to paste, without what the search added."""
        return shlex.join(["align", *self.plan.fixed, *drawn])


def planned(words: list[str]) -> Search:
    """The search that the words mean, after all checks that need no model."""
    plan = read(words)
    trials = checked(plan.fixed, plan.spaces)
    cfg = trials.first
    stages = stages_of_run(cfg)
    searched = [space.name for space in plan.spaces]
    typed = [*searched, *(word.lstrip("+").partition("=")[0] for word in plan.fixed)]
    figure = plan.objective or merit(cfg, stages)
    check_objective(figure, cfg, stages, searched)
    objective = Objective(figure, plan.direction or direction(figure))
    on_the_way, unpruned = evaluations(figure, cfg, typed) if plan.pruner != "none" else ([], "")
    shared = leaves(OmegaConf.to_container(trials.shared, resolve=False))
    return Search(
        plan, trials, objective, Path(cfg.runs).expanduser() / (plan.name or f"{cfg.name}_search"),
        added=[*keep_test_rows(stages, typed), *on_the_way],
        seed=0 if "seed" in searched else cfg.seed,
        unpruned=unpruned,
        identity={
            "objective": figure,
            "direction": objective.direction,
            "spaces": {space.key: space.text for space in plan.spaces},
            "settings": {key: str(value) for key, value in shared if key not in ("name", "runs")},  # where runs go
        },
        one_kernel=CPU_LINEAR not in typed,
    )  # fmt: skip


def read(words: list[str]) -> Plan:
    """Raises AlignError for words that make no search, Hydra's errors for what it cannot read."""
    plan = Plan([], [])
    seen: set[str] = set()
    for word in words:
        if word.startswith("-"):
            raise AlignError(f"search {word}: a search has no flags but --help. Use yaml of your own in ./conf.")
        override = parse(word)
        key = override.get_key_element()
        if key.lstrip("+") in seen:
            raise AlignError(f"{word}: {key} is given twice. Use it once, as a value or as a space.")
        seen.add(key.lstrip("+"))
        if override.value_type in (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
            instead = shlex.quote(f"{key}=choice({word.partition('=')[2]})")
            raise AlignError(f"{word}: these are several values. Use {instead}, or align -m for all of them.")
        if key in OWN:
            setattr(plan, key, _own(key, override.value(), word))
        elif isinstance(override._value, Call):
            plan.spaces.append(space_of(word, override))
        else:
            near = difflib.get_close_matches(key, OWN, n=1, cutoff=0.8)
            if near and key != "runs":
                raise AlignError(f"{word}: there is no such word. Use {near[0]}; a search has {', '.join(OWN)}.")
            plan.fixed.append(word)
    for space in plan.spaces:
        if space.name.partition(".")[0] in NOT_SEARCHED:
            raise AlignError(f"{space.name}={space.text}: it is the same in every trial. Use a value.")
    if not plan.spaces:
        raise AlignError(f"search: there is nothing to search. Use a space, as in {EXAMPLE}")
    return plan


def _own(key: str, value: Any, word: str) -> Any:
    """The value of one of the search's own words."""
    if isinstance(value, Call) or value in (None, ""):
        raise AlignError(f"{word}: {key} belongs to the search, and is not searched. Use a value, as in {EXAMPLE}")
    if key == "trials":
        if type(value) is not int or value < 1:
            raise AlignError(f"{word}: it is no number of trials. Use a whole number of 1 or more.")
        return value
    if key in CHOICES and value not in CHOICES[key]:
        raise AlignError(f"{word}: there is no such {key}. Use one of {', '.join(CHOICES[key])}.")
    if key == "name" and (set("/\\") & set(str(value)) or str(value).startswith(".")):
        raise AlignError(f"{word}: it names a folder. Use a name without slashes that does not begin with a dot.")
    return str(value)
