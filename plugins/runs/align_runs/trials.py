"""The words of a search: its own, spaces, and settings that are the same in every trial; and the trials they make.

All that can be known without a model is checked before the first trial. A setting that only some choices of a plug have
(`sft.peft.r` with `peft@sft.peft=choice(lora,houlsby)`) is searched in the trials of those choices alone. No torch.
"""

from __future__ import annotations

import copy
import difflib
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align.config.leaves import leaves
from align.errors import AlignError
from align_runs.compose import check, compose, stages_of_run
from align_runs.space import Call, Space, fitted, parse, space_of
from align_runs.stages import check_objective, direction, evaluations, keep_test_rows, merit

CHOICES = {
    "sampler": ("tpe", "random", "gp"),
    "pruner": ("median", "hyperband", "none"),
    "direction": ("minimize", "maximize"),
}
OWN = ("trials", "objective", "direction", "name", "sampler", "pruner")
NOT_SEARCHED = ("name", "runs", "stages", "hydra")
EXAMPLE = "align search experiment=tiny 'sft.learning_rate=log(1e-4,1e-1)' trials=20"
CPU_LINEAR = "cpu_linear"
REFUSED = (HydraException, OmegaConfBaseException, AlignError)
Chosen = tuple[str, ...]
"""An option for each plug that is searched."""


# -- the words --------------------------------------------------------------------------------


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


# -- the trials -------------------------------------------------------------------------------


@dataclass
class Trials:
    fixed: list[str]
    shared: DictConfig
    """The configuration of the fixed settings."""
    plugs: list[Space]
    """Choices of plugs, such as peft@sft.peft."""
    values: list[Space]
    """All other settings."""
    known: dict[Chosen, tuple[list[str], DictConfig]] = field(default_factory=dict)

    @property
    def first(self) -> DictConfig:
        """The configuration of a trial: the first options, the low ends."""
        return self.lowest(self.combinations()[0])[1]

    def lowest(self, chosen: Chosen) -> tuple[list[str], DictConfig]:
        """The keys that the chosen plugs have, of those that are searched, and the configuration at their low ends."""
        if chosen not in self.known:
            start = [*self.fixed, *self.words(chosen)]
            lows = {space.key: f"{space.key}={space.ends()[0]}" for space in self.values}
            cfg, keys = _composed([*start, *lows.values()]), list(lows)
            if cfg is None:
                keys = [key for key in lows if _composed([*start, lows[key]]) is not None]
                cfg, _ = compose([*start, *(lows[key] for key in keys)])
            self.known[chosen] = keys, cfg
        return self.known[chosen]

    def suggest(self, trial: Any) -> list[str]:
        """The searched settings of an Optuna trial, as its sampler has them."""
        chosen = tuple(str(space.suggest(trial)) for space in self.plugs)
        keys, _ = self.lowest(chosen)
        found = {space.key: space.word(space.suggest(trial)) for space in self.values if space.key in keys}
        return [*self.words(chosen), *(f"{key}={value}" for key, value in found.items())]

    def combinations(self) -> list[Chosen]:
        """The first options of all plugs; then every other option among the others' first."""
        first = tuple(space.options[0] for space in self.plugs)
        rest = [(i, option) for i, space in enumerate(self.plugs) for option in space.options[1:]]
        return [first, *((*first[:i], option, *first[i + 1 :]) for i, option in rest)]

    def home(self, space: Space) -> Chosen:
        """The first options that go with a setting. Raises as Hydra does for a key that none of them has."""
        for chosen in self.combinations():
            if space.key in self.lowest(chosen)[0]:
                return chosen
        compose([*self.fixed, *self.words(self.combinations()[0]), f"{space.key}={space.ends()[0]}"])
        raise AlignError(f"{space.key}={space.text}: it goes with no other setting here. Use the others without it.")

    def only_with(self, space: Space) -> str:
        """For a line on the terminal: the options that have this setting, where others do not; else ''."""
        combinations = self.combinations()
        some = [c for c in combinations if space in self.plugs or space.key in self.lowest(c)[0]]
        return "" if len(some) == len(combinations) else f"  (only with {' or '.join(map(', '.join, some))})"

    def words(self, chosen: Chosen) -> list[str]:
        return [f"{space.key}={option}" for space, option in zip(self.plugs, chosen, strict=True)]


def checked(fixed: list[str], spaces: list[Space]) -> Trials:
    """The trials of a search. Raises as a run would: for the first trial, for both ends of a range, every option."""
    shared, groups = compose(fixed)
    plugs = [space for space in spaces if space.name in groups]
    if wrong := next((space for space in plugs if space.kind != "choice"), None):
        raise AlignError(f"{wrong.name}={wrong.text}: it is a plug. Use '{wrong.name}=choice(NAME,NAME)'.")
    trials = Trials(fixed, shared, plugs, [space for space in spaces if space.name not in groups])
    homes = {space.key: trials.home(space) for space in trials.values}
    plain = {home: compose([*fixed, *trials.words(home)])[0] if home else shared for home in homes.values()}
    trials.values = [fitted(space, plain[homes[space.key]]) for space in trials.values]
    seen: set[str] = set()
    for chosen in trials.combinations():
        check(trials.lowest(chosen)[1], seen)
    for space in trials.values:
        for end in space.ends():
            cfg = copy.deepcopy(trials.lowest(homes[space.key])[1])
            OmegaConf.update(cfg, space.name, parse(f"{space.name}={end}").value())
            check(cfg, seen)
    return trials


def _composed(words: list[str]) -> DictConfig | None:
    """None where the words do not go together."""
    try:
        return compose(words)[0]
    except REFUSED:
        return None


# -- the search -------------------------------------------------------------------------------


@dataclass
class Search:
    plan: Plan
    trials: Trials
    figure: str
    """Its objective."""
    direction: str
    home: Path
    added: list[str]
    """Settings that the search adds to those that were typed."""
    seed: int
    """The sampler's."""
    unpruned: str
    """Reason why trials cannot be pruned; '' where they can."""
    identity: dict[str, str]
    """Identity of this search: objective, spaces, settings."""
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
    better = plan.direction or direction(figure)
    on_the_way, unpruned = evaluations(figure, cfg, typed) if plan.pruner != "none" else ([], "")
    shared = leaves(OmegaConf.to_container(trials.shared, resolve=False))
    return Search(
        plan, trials, figure, better, Path(cfg.runs).expanduser() / (plan.name or f"{cfg.name}_search"),
        added=[*keep_test_rows(stages, typed), *on_the_way],
        seed=0 if "seed" in searched else cfg.seed,
        unpruned=unpruned,
        identity={
            "objective": figure,
            "direction": better,
            **{space.key: space.text for space in plan.spaces},
            **{key: str(value) for key, value in shared if key not in (*searched, "name", "runs")},  # where runs go
        },
        one_kernel=CPU_LINEAR not in typed,
    )  # fmt: skip
