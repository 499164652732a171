"""Sections of a configuration as frozen dataclasses, whose fields hold their own constraints. No torch, no Hydra.

    @section("ppo")
    class PPOOptions:
        steps: int = number(100, low=1)
        \"\"\"Rollout batches.\"\"\"

A section checks its fields when it is made, from Hydra or from Python alike, and `describe` gives what
`align --help ppo.steps` prints.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from align.config.values import Plug, Settings, frozen
from align.errors import AlignError

UNSET = "???"
"""Stands in a configuration where a value is still to be given."""
ALLOWED, FOLLOWS, RARE = "allowed", "follows", "rare"
T = TypeVar("T")


@dataclass(frozen=True)
class Allowed:
    """Values that a field takes: words, or numbers from `low` to `high`, `low` itself left out where `above`."""

    words: tuple[str, ...] = ()
    numbers: bool = False
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    whole: bool = False
    prefix: str = ""
    """May stand before a number: `lora:2e-4`."""
    listed: bool = False
    """A list of these values is allowed, too."""
    empty: bool = False
    """So is an empty list."""
    unit: str = ""

    def holds(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return self.listed and (self.empty or bool(value)) and all(self.holds(one) for one in value)
        if isinstance(value, str):
            return value in self.words or self._holds_prefixed(value)
        if isinstance(value, bool) or not self.numbers or not isinstance(value, int | float):
            return False
        if not math.isfinite(value) or (self.whole and value != int(value)):
            return False
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def _holds_prefixed(self, value: str) -> bool:
        if not self.prefix or not value.startswith(self.prefix):
            return False
        try:
            return self.holds(float(value.removeprefix(self.prefix)))
        except ValueError:
            return False

    def __str__(self) -> str:
        """The values in words, as a message or a help names them."""
        parts = []
        if self.numbers:
            parts.append(self._range())
        if self.prefix:
            parts.append(f"{self.prefix}NUMBER")
        if self.words and not self.numbers:
            parts.append(f"one of {', '.join(self.words)}")
        else:
            parts += self.words
        return ", or ".join(parts) + (", or a list of these" if self.listed else "")

    def _range(self) -> str:
        noun = "a whole number" if self.whole else "a number"
        if self.low == -math.inf:
            return "a finite number"
        low = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        if self.high < math.inf:
            return f"{noun} {low} {'and at most' if self.above else 'to'} {self.high:.10g}"
        return f"{noun} {low}"


def number(
    default: Any = UNSET, low: float = -math.inf, high: float = math.inf, above: float | None = None,
    words: Iterable[str] = (), prefix: str = "", listed: bool = False, unit: str = "", follows: str = "",
    rare: bool = False,
) -> Any:  # fmt: skip
    """A field of numbers. `above` is a bound that is left out; `follows` the key whose value it takes in a
    configuration unless it is given. A `rare` field is taken where it is given, and not composed else. With the
    default `dataclasses.MISSING` Python has to give a value."""
    allowed = Allowed(
        tuple(words), True, low if above is None else above, high, above is not None, prefix=prefix, listed=listed,
        empty=default == (), unit=unit,
    )  # fmt: skip
    return field(default=default, metadata={ALLOWED: allowed, FOLLOWS: follows, RARE: rare})


def choice(
    default: str | tuple[str, ...], *words: str, listed: bool = False, follows: str = "", rare: bool = False
) -> Any:
    """A field of one of the words, or with `listed` of a list of them."""
    return field(
        default=default, metadata={ALLOWED: Allowed(tuple(words), listed=listed), FOLLOWS: follows, RARE: rare}
    )


def value(default: Any = UNSET, follows: str = "", rare: bool = False) -> Any:
    """A field without a constraint beyond its type."""
    return field(default=default, metadata={FOLLOWS: follows, RARE: rare})


def open_settings() -> Any:
    """A field of settings that are another library's or a user's: any key is taken, without `+`."""
    return field(default_factory=Settings)


def section(key: str) -> Callable[[type[T]], type[T]]:
    """Make a frozen dataclass of the settings under `key`, whose instances are checked.

    Raises AlignError from the constructor: a field's own constraint first, then what `check_together`, a method of the
    class, finds wrong between fields.
    """

    def made(cls: type[T]) -> type[T]:
        def __post_init__(self: Any) -> None:
            for one in fields(self):
                object.__setattr__(self, one.name, checked(cls, one, getattr(self, one.name), key))
            if hasattr(self, "check_together"):
                self.check_together()

        cls.__post_init__ = __post_init__
        cls.SECTION = key
        return dataclass(frozen=True)(cls)

    return made


def checked_settings(cls: type, values: Mapping[str, Any], key: str) -> Settings:
    """The settings at `key`, as the fields of a section's class have them.

    Raises AlignError for one that the class does not have, or does not take.
    """
    known = {one.name: one for one in fields(cls)}
    for name in values:
        if name not in known:
            raise unknown_setting(f"{key}.{name}", values[name], known)
    return Settings(tuple((name, checked(cls, known[name], found, key)) for name, found in values.items()))


def unknown_setting(key: str, found: Any, known: Iterable[str], owner: str = "", instead: str = "") -> AlignError:
    """The error for a key that is none of those known at its place; `instead` is the remedy where none is near."""
    home, _, name = key.rpartition(".")
    given = f"{key}={shown(found)}" if found is None or isinstance(found, str | int | float | tuple | list) else key
    close = difflib.get_close_matches(ALIASES.get(name, name), known, n=3)
    names = ", ".join(f"{home}.{one}".lstrip(".") for one in close or list(known)[:MANY])
    remedy = f"nearest: {names}" if close else instead or f"use one of {names}"
    problem = f"{owner} has no such argument" if owner else f"{home or 'a configuration'} has no such key"
    return AlignError(f"{given}: {problem}\n  {remedy}")


def checked(cls: type, one: Field, found: Any, key: str) -> Any:
    """A value of a field, as its type has it. Raise AlignError for a value that the field does not take."""
    return checked_value(found, f"{key}.{one.name}".lstrip("."), types_of(cls)[one.name], allowed_by(cls, one))


def checked_value(value: Any, key: str, kinds: tuple[type, ...], allowed: Allowed | None = None) -> Any:
    """The value at `key`, of one of the kinds, and of those allowed. Raise AlignError for another.

    A number in a text is that number where one is taken: variables of the environment are text. Values that are still
    unset, or that refer to another key, are left to their owner.
    """
    found = frozen(value, key)
    if object in kinds or (isinstance(found, str) and (found == UNSET or found.startswith("${"))):
        return found
    if found is None and NoneType in kinds:
        return None
    found = _parsed(found, kinds) if isinstance(found, str) else found
    if not (_of_type(found, kinds) if allowed is None else found is not None and allowed.holds(found)):
        if allowed is not None and isinstance(found, tuple):
            found = next((one for one in found if not allowed.holds(one)), found)
        near = nearest(str(found), allowed.words) if allowed is not None and isinstance(found, str) else ""
        raise AlignError(f"{key}={shown(found)}: use {allowed or _in_words(key, kinds, found)}{near}")
    if isinstance(found, int) and not isinstance(found, bool) and not {int, float} & set(kinds):
        return str(found)
    return float(found) if isinstance(found, int) and float in kinds and not {int, bool} & set(kinds) else found


def _in_words(key: str, kinds: tuple[type, ...], found: Any) -> str:
    """Values of these kinds in words; where they are plugs, the choice to type."""
    words = " or ".join(dict.fromkeys(KINDS[kind] for kind in kinds if kind in KINDS))
    home, _, name = key.rpartition(".")
    return words or f"{'+' * (home == 'reward')}{GROUPS.get(name, 'reward')}@{key}={shown(found)}"


def _parsed(text: str, kinds: tuple[type, ...]) -> Any:
    """The number or truth value in a text where a field takes one."""
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            with suppress(ValueError):
                return kind(text)
    return text


GROUPS = {"peft": "peft", "zero": "zero", "data": "data", "general": "data"}
"""Groups that the choices of fields come from; of all others it is `reward`."""
KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "a list",
    Settings: "settings, a key each",
}  # fmt: skip
ALIASES = {"lr": "learning_rate", "max_steps": "steps", "num_train_epochs": "epochs"}
"""Settings by the names that other programs use."""
MANY = 8
"""Keys that a message lists where none is near."""


def allowed_by(cls: type, one: Field) -> Allowed | None:
    """The values that a field takes, whole numbers alone where its type has no others; None: any of its type."""
    allowed, kinds = one.metadata.get(ALLOWED), types_of(cls)[one.name]
    return replace(allowed, whole=True) if allowed is not None and int in kinds and float not in kinds else allowed


def _of_type(found: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(found, bool):
        return bool in kinds
    if isinstance(found, int | float):
        return type(found) in kinds or float in kinds or str in kinds
    return isinstance(found, kinds)


@cache
def types_of(target: Callable) -> dict[str, tuple[type, ...]]:
    """The types that each argument takes: of a section, or of another class or function."""
    owner = target if is_dataclass(target) or not inspect.isclass(target) else target.__init__
    return {name: _kinds(hint) for name, hint in get_type_hints(owner).items()}


FROZEN = {list: tuple, set: tuple, dict: Settings, Mapping: Settings, Sequence: tuple, Collection: tuple}
"""Types of annotations, as a plan holds their values."""


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types of a configuration's values that an annotation takes; `object` where it is about none of them."""
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds(part))
    if origin is Literal:
        return tuple(dict.fromkeys(type(one) for one in get_args(hint)))
    found = FROZEN.get(origin, origin)
    return (found,) if found in (bool, int, float, str, NoneType, tuple, Settings, Plug) else (object,)


def shown(found: Any) -> str:
    """A value as it is typed: [a,b] for several, true, null."""
    if isinstance(found, tuple | list):
        return f"[{','.join(shown(one) for one in found)}]"
    if found is None or isinstance(found, bool):
        return {True: "true", False: "false", None: "null"}[found]
    return str(found)


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """A line that names the nearest of the words; '' where none is near."""
    close = difflib.get_close_matches(word, [str(one) for one in words], n=1, cutoff=cutoff)
    return f"\n  nearest: {close[0]}" if close else ""


def describe(cls: type, name: str) -> tuple[list[str], str]:
    """Facts about a field (default, allowed values, unit) and its help, which is the docstring under it."""
    one = next(one for one in fields(cls) if one.name == name)
    follows, allowed = one.metadata.get(FOLLOWS), allowed_by(cls, one)
    usual = one.default if one.default_factory is MISSING else one.default_factory()
    default = f"that of {follows}" if follows else "none" if usual == Settings() else shown(usual)
    default = "required" if usual in (UNSET, MISSING) else default
    facts = [f"default {default}", str(allowed or ""), allowed.unit if allowed else ""]
    return [fact for fact in facts if fact], docstring(cls, name)


def docstring(cls: type, name: str) -> str:
    """The docstring under a field, of the class or of one that it extends."""
    for owner in cls.__mro__[:-1]:
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for one, below in zip(body, [*body[1:], None], strict=True):
            if isinstance(one, ast.AnnAssign) and one.target.id == name and isinstance(below, ast.Expr):
                return inspect.cleandoc(below.value.value)
    return ""
