"""The settings of trials: which spaces go together, and what is wrong with them before the first trial. No torch.

A setting that only some choices of a plug have (`sft.peft.r` with `peft@sft.peft=choice(lora,houlsby)`) is searched
in the trials of those choices alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align.errors import AlignError
from align_runs.compose import check, compose
from align_runs.space import Space, fitted, parse

REFUSED = (HydraException, OmegaConfBaseException, AlignError)
Chosen = tuple[str, ...]
"""An option for each plug that is searched."""


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
