"""What a setting may be in a search: `log(1e-5,1e-2)`, `uniform(0,1)`, `range(1,8)`, `choice(lora,houlsby)`.

Words are read by Hydra's own grammar, with these functions in the place of its sweeps; `interval` is `uniform`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, ValueType
from hydra.errors import OverrideParseException

from align.errors import AlignError

FUNCTIONS = ("log", "uniform", "range", "choice")
DIGITS = 4
"""Of a number that a trial is set to: enough to tell settings apart, few enough to type."""


@dataclass(frozen=True)
class Asked:
    """A function as it was typed."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Space:
    key: str
    """As it is typed before the `=`: sft.peft.r, +sft.args.weight_decay, peft@sft.peft."""
    text: str
    """As it is typed behind."""
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
            step = 1 if self.kind == "log" else self.step
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.kind == "log", step=step)
        return trial.suggest_float(self.name, self.low, self.high, log=self.kind == "log")


def parse(word: str) -> Override:
    """A setting as Hydra reads it; its value is an `Asked` where it is a space. Raises as Hydra does."""
    functions = create_functions()
    for name in (*FUNCTIONS, "interval"):
        functions.definitions.pop(name, None)
        functions.register(name, _asked("uniform" if name == "interval" else name))
    try:
        return OverridesParser(functions=functions).parse_overrides([word])[0]
    except OverrideParseException as error:
        if "Unknown function" in str(error):
            known = ", ".join(FUNCTIONS)
            raise AlignError(f"search: {word}: there is no such function\n  write one of {known}") from error
        raise


def _asked(name: str) -> Any:
    def ask(*values):  # type: ignore[no-untyped-def]  # Hydra holds arguments to annotations, and knows none for all
        return Asked(name, values)

    return ask


def space_of(word: str, override: Override) -> Space:
    """The space of a setting whose value is `Asked`. Raises AlignError for one without anything to choose from."""
    asked: Asked = override._value
    key, text = override.get_key_element(), word.partition("=")[2]
    here = f"search: {key}={text}"
    if override.type == OverrideType.DEL:
        raise AlignError(f"{here}: a setting cannot be taken out and searched\n  leave the ~ out")
    if asked.name == "choice":
        return Space(key, text, "choice", options=_options(override, asked.values, here))
    numbers = [value for value in asked.values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != len(asked.values) or not all(map(math.isfinite, numbers)):
        raise AlignError(f"{here}: its ends are no numbers\n  write {asked.name}(1,8), or choice(…) for words")
    if asked.name == "range":
        return _range(key, text, numbers, here)
    if len(numbers) != 2:
        raise AlignError(f"{here}: {asked.name} has two ends\n  write {asked.name}(1e-5,1e-2)")
    low, high = numbers
    if asked.name == "log" and min(low, high) <= 0:
        raise AlignError(f"{here}: a logarithmic range lies above 0\n  write log(1e-5,1e-2), or uniform({low},{high})")
    if low >= high:
        raise AlignError(_no_range(here, asked.name, low, high, key))
    whole = all(isinstance(value, int) for value in numbers)
    return Space(key, text, asked.name, low, high, whole=whole)


def _range(key: str, text: str, numbers: list[float], here: str) -> Space:
    """As Hydra's and Python's: the end is not in it."""
    if not all(isinstance(value, int) for value in numbers) or not 1 <= len(numbers) <= 3:
        raise AlignError(f"{here}: a range is of whole numbers\n  write range(1,8), range(1,8,2), or uniform(0,1)")
    low, high, step = (0, *numbers, 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    if step < 1 or low + step >= high:
        if step < 1 or low >= high:
            raise AlignError(_no_range(here, "range", low, high, key))
        raise AlignError(f"{here}: {low} is all that is in it, since a range ends before its end\n  write {key}={low}")
    return Space(key, text, "range", low, low + (high - 1 - low) // step * step, step, whole=True)


def _no_range(here: str, name: str, low: float, high: float, key: str) -> str:
    if low == high:
        return f"{here}: both ends are the same\n  write {key}={low}"
    return f"{here}: its ends are the wrong way round\n  write {name}({min(low, high)},{max(low, high)})"


def _options(override: Override, values: tuple[Any, ...], here: str) -> tuple[str, ...]:
    """The options as overrides have them: quotes, lists and null included."""
    if not values or any(isinstance(value, Asked) for value in values):
        what = "there is nothing to choose from" if not values else "a choice is between plain values"
        raise AlignError(f"{here}: {what}\n  write choice(4,8,16)")
    typed = Override(
        override.type, override.key_or_group, ValueType.CHOICE_SWEEP, ChoiceSweep(list=list(values)), override.package
    )
    options = list(typed.sweep_string_iterator())
    if twice := next((option for option in options if options.count(option) > 1), None):
        raise AlignError(f"{here}: {twice} is in it twice\n  write it once")
    return tuple(options)
