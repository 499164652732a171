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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from align.config.values import Settings, frozen
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
            return f"{noun} {low} {'and at most' if self.above else 'to'} {self.high:g}"
        return f"{noun} {low}"


def number(
    default: Any = UNSET, low: float = -math.inf, high: float = math.inf, above: float | None = None,
    words: Iterable[str] = (), prefix: str = "", listed: bool = False, unit: str = "", follows: str = "",
    rare: bool = False,
) -> Any:  # fmt: skip
    """A field of numbers. `above` is a bound that is left out; `follows` the key whose value it takes in a
    configuration unless it is given. A `rare` field is taken where it is given, and not composed else."""
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
                found = frozen(getattr(self, one.name), f"{key}.{one.name}")
                object.__setattr__(self, one.name, checked(cls, one, found, key))
            if hasattr(self, "check_together"):
                self.check_together()

        cls.__post_init__ = __post_init__
        cls.SECTION = key
        return dataclass(frozen=True)(cls)

    return made


def check_values(cls: type, values: Mapping[str, Any], key: str) -> None:
    """Raise AlignError for a setting at `key` that a section's class does not have, or does not take."""
    known = {one.name: one for one in fields(cls)}
    for name, found in values.items():
        if name not in known:
            near = nearest(name, known) or f"\n  it has {', '.join(known)}"
            raise AlignError(f"{key}.{name}: there is no such key{near}")
        checked(cls, known[name], frozen(found, f"{key}.{name}"), key)


def checked(cls: type, one: Field, found: Any, key: str) -> Any:
    """A value of a field, as its type has it. Raise AlignError for a value that the field does not take.

    Values that are still unset, or that refer to another key, are left to their owner.
    """
    if isinstance(found, str) and (found == UNSET or found.startswith("${")):
        return found
    kinds, allowed = types_of(cls)[one.name], allowed_by(cls, one)
    if found is None and type(None) in kinds:
        return None
    found = _parsed(found, kinds) if isinstance(found, str) else found
    right = _of_type(found, kinds) if allowed is None else found is not None and allowed.holds(found)
    if not right:
        words = " or ".join(dict.fromkeys(KINDS[kind] for kind in kinds if kind in KINDS))
        words = "settings, a key each" if Settings in kinds else words
        words = words or f"{'+' * (key == 'reward')}{GROUPS.get(one.name, 'reward')}@{key}.{one.name}={shown(found)}"
        if allowed is not None and isinstance(found, tuple):
            found = next((one for one in found if not allowed.holds(one)), found)
        near = nearest(str(found), allowed.words) if allowed is not None and isinstance(found, str) else ""
        raise AlignError(f"{key}.{one.name}={shown(found)}: use {allowed or words}{near}")
    if isinstance(found, int) and not isinstance(found, bool) and not {int, float} & set(kinds):
        return str(found)
    return float(found) if isinstance(found, int) and float in kinds and int not in kinds else found


def _parsed(text: str, kinds: tuple[type, ...]) -> Any:
    """The number or truth value in a text where a field takes one: variables of the environment are text."""
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            with suppress(ValueError):
                return kind(text)
    return text


GROUPS = {"peft": "peft", "zero": "zero", "data": "data", "general": "data"}
"""Groups that the choices of fields come from; of all others it is `reward`."""
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "a list"}


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
def types_of(cls: type) -> dict[str, tuple[type, ...]]:
    """The types that each field of a section takes."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        found[name] = tuple(get_origin(part) or part for part in parts)
    return found


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


@dataclass(frozen=True)
class Described:
    """Facts about a setting, for `align --help KEY`."""

    default: str
    allowed: str
    unit: str
    help: str


def describe(cls: type, name: str) -> Described:
    """Default, allowed values, unit and help of a field; the help is the docstring under it."""
    one = next(one for one in fields(cls) if one.name == name)
    follows = one.metadata.get(FOLLOWS)
    usual = one.default_factory() if one.default is MISSING else one.default
    default = f"that of {follows}" if follows else "none" if usual == Settings() else shown(usual)
    default = "required" if usual == UNSET else default
    allowed = allowed_by(cls, one)
    return Described(default, str(allowed or ""), allowed.unit if allowed else "", docstring(cls, name))


def docstring(cls: type, name: str) -> str:
    """The docstring under a field, of the class or of one that it extends."""
    for owner in cls.__mro__[:-1]:
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for one, below in zip(body, [*body[1:], None], strict=True):
            if isinstance(one, ast.AnnAssign) and one.target.id == name and isinstance(below, ast.Expr):
                return inspect.cleandoc(below.value.value)
    return ""
