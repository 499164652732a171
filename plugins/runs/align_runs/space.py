"""The values that a setting may take in a search: `log(1e-5,1e-2)`, `uniform(0,1)`, `range(1,8)`, `choice(a,b)`.

Words are read by Hydra's own grammar, with these functions in the place of its sweeps; `interval` is `uniform`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, ValueType
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.nodes import BooleanNode, StringNode, ValueNode

from align.config.choices import FOR_LORA
from align.errors import AlignError
from align_runs.compose import kinds_of

FUNCTIONS = ("log", "uniform", "range", "choice")
DIGITS = 4
"""Of a number that a trial is set to: enough to tell settings apart, few enough to type."""


@dataclass(frozen=True)
class Call:
    """A function as it was typed."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Space:
    key: str
    """As typed before the `=`: sft.peft.r, +sft.args.weight_decay, peft@sft.peft."""
    text: str
    """As typed behind it."""
    kind: str
    """log, uniform, range or choice."""
    low: float = 0.0
    high: float = 0.0
    """The largest value, itself included."""
    step: int = 1
    options: tuple[str, ...] = ()
    whole: bool = False
    """Whole numbers only; as read, before the setting is known: both ends are typed as whole numbers."""

    @property
    def name(self) -> str:
        return self.key.lstrip("+")

    def ends(self) -> list[str]:
        """The values that decide whether all are allowed: both ends, or every option."""
        return list(self.options) or [self.word(self.low), self.word(self.high)]

    def word(self, value: float | str) -> str:
        """A value as an override has it; numbers with four digits, within the ends."""
        if isinstance(value, str):
            return value
        if self.whole:
            return str(int(value))
        return repr(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))

    def suggest(self, trial: Any) -> float | str:
        """The sampler's value for an Optuna trial."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, self.options)
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.kind == "log", step=self.step)
        return trial.suggest_float(self.name, self.low, self.high, log=self.kind == "log")


def parse(word: str) -> Override:
    """A setting as Hydra reads it; its value is a `Call` where it is a space. Raises as Hydra does."""
    functions = create_functions()
    for name in (*FUNCTIONS, "interval"):
        functions.definitions.pop(name, None)
        functions.register(name, _call("uniform" if name == "interval" else name))
    try:
        return OverridesParser(functions=functions).parse_overrides([word])[0]
    except OverrideParseException as error:
        if "Unknown function" in str(error):
            raise AlignError(f"{word}: there is no such function. Use one of {', '.join(FUNCTIONS)}.") from error
        raise


def _call(name: str) -> Any:
    def call(*values):  # type: ignore[no-untyped-def]  # Hydra holds arguments to annotations, and knows none for all
        return Call(name, values)

    return call


def space_of(word: str, override: Override) -> Space:
    """The space of a setting whose value is a `Call`. Raises AlignError for one without anything to choose from."""
    call: Call = override._value
    key, text = override.get_key_element(), word.partition("=")[2]
    if override.type == OverrideType.DEL:
        raise AlignError(f"{key}={text}: a setting cannot be deleted and searched. Use it without the ~.")
    if call.name == "choice":
        return Space(key, text, "choice", options=_options(override, call.values, f"{key}={text}"))
    low, high, step = _numbers(call, key, text)
    whole = all(isinstance(value, int) for value in call.values)
    return Space(key, text, call.name, low, high, step, whole=whole)


def _numbers(call: Call, key: str, text: str) -> tuple[float, float, int]:
    """The smallest and the largest value, and the step, which is 1 for all but `range`."""
    here, values = f"{key}={text}", call.values
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise AlignError(f"{here}: its ends are no numbers. Use {call.name}(1,8), or choice(…) for words.")
    if call.name == "range":
        if not all(isinstance(value, int) for value in values) or not 1 <= len(values) <= 3:
            raise AlignError(f"{here}: a range is of whole numbers. Use range(1,8), range(1,8,2) or uniform(0,1).")
        low, end, step = (0, *values, 1) if len(values) == 1 else (*values, 1)[:3]
    elif len(values) != 2:
        raise AlignError(f"{here}: {call.name} has two ends. Use {call.name}(1e-5,1e-2).")
    else:
        (low, end), step = values, 1
    if call.name == "log" and min(low, end) <= 0:
        raise AlignError(f"{here}: a logarithmic range lies above 0. Use log(1e-5,1e-2) or uniform({low},{end}).")
    if low == end:
        raise AlignError(f"{here}: both ends are the same. Use {key}={low}.")
    if low > end or step < 1:
        raise AlignError(f"{here}: it is the wrong way round. Use {call.name}({min(low, end)},{max(low, end)}).")
    if call.name != "range":
        return low, end, 1
    if low + step >= end:  # as Hydra's and Python's, it ends before its end
        raise AlignError(f"{here}: {low} is all that is in it, since a range ends before its end. Use {key}={low}.")
    return low, low + (end - 1 - low) // step * step, step


def _options(override: Override, values: tuple[Any, ...], here: str) -> tuple[str, ...]:
    """The options as overrides have them: quotes, lists and null included."""
    if not values or any(isinstance(value, Call) for value in values):
        problem = "a choice is between plain values" if values else "there is nothing to choose from"
        raise AlignError(f"{here}: {problem}. Use choice(4,8,16).")
    typed = Override(
        override.type, override.key_or_group, ValueType.CHOICE_SWEEP, ChoiceSweep(list=list(values)), override.package
    )
    options = list(typed.sweep_string_iterator())
    if twice := next((option for option in options if options.count(option) > 1), None):
        raise AlignError(f"{here}: {twice} is in it twice. Use it once.")
    return tuple(options)


def fitted(space: Space, cfg: DictConfig) -> Space:
    """The space as its setting in `cfg` takes it: of whole numbers or of fractions.

    Raises AlignError for a range of numbers where the setting takes none.
    """
    if space.kind == "choice":
        return space
    setting = _setting(cfg, space.name)
    value = setting._value() if isinstance(setting, ValueNode) else None
    here = f"{space.name}={space.text}"
    if not _is_number(setting, value, kinds_of(space.name)):
        kind = "a section" if setting is not None and not isinstance(setting, ValueNode) else f"{value}, no number"
        options = "true,false" if isinstance(value, bool) else "…"
        raise AlignError(f"{here}: the setting is {kind}. Use '{space.name}=choice({options})'.")
    kinds = kinds_of(space.name)
    counted = int in kinds and float not in kinds if kinds else type(value) is int and space.whole
    if counted and not (space.whole and space.kind in ("range", "log")):
        low, high = int(space.low), int(space.high)
        raise AlignError(f"{here}: the setting takes whole numbers. Use range({low},{high + 1}), up to {high}.")
    return space if space.kind == "range" else replace(space, whole=space.whole and counted)


def _setting(cfg: DictConfig, name: str) -> Any:
    """The node of a setting, or of the one that it refers to; None where a `+` is to add it."""
    owner, _, last = name.rpartition(".")
    node = OmegaConf.select(cfg, owner) if owner else cfg
    found = node._get_node(last) if isinstance(node, DictConfig) and last in node else None
    return None if found is None else found._maybe_dereference_node()


def _is_number(setting: Any, value: Any, kinds: tuple[type, ...]) -> bool:
    """Return True for a setting that takes numbers; one that is not there, or null and of no type, may become one."""
    if kinds:
        return bool({int, float} & set(kinds))
    free = isinstance(setting, ValueNode) and not isinstance(setting, StringNode | BooleanNode)
    return setting is None or (
        free and (value is None or type(value) in (int, float) or str(value).startswith(FOR_LORA))
    )
