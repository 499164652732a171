"""Values of a configuration that cannot change and can be hashed: settings by name, and a plug with its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...] | Settings | Plug | None"
TARGET = "_target_"
NONE = "align.config.none"
"""The `_target_` of a choice `none`."""


@dataclass(frozen=True)
class Settings(Mapping):
    """Settings by name, in their order.

    >>> Settings.of({"r": 8, "target_modules": ["q_proj"]})["target_modules"]
    ('q_proj',)
    """

    pairs: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any], key: str = "") -> Settings:
        """Freeze a mapping with all that is inside; `key` is the configuration key that holds it."""
        return cls(tuple((str(name), frozen(value, f"{key}.{name}")) for name, value in values.items()))

    def __getitem__(self, name: str) -> Value:
        for one, value in self.pairs:
            if one == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def plain(self) -> dict[str, Any]:
        """Dicts and lists with the same content."""
        return {name: plain(value) for name, value in self.pairs}


@dataclass(frozen=True)
class Plug:
    """A class or function of the configuration, by dotted path, with the arguments that it is given.

    `key` is where it stands (`reward.terms.polite`), which messages begin with; two plugs with the same content are
    equal wherever they stand.
    """

    target: str
    settings: Settings = field(default_factory=Settings)
    key: str = field(default="", compare=False)

    def get(self, name: str, default: Any = None) -> Any:
        return self.settings.get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self.settings

    def without(self, *names: str) -> Plug:
        """The same plug without some of its settings."""
        return self.given(Settings(tuple(pair for pair in self.settings.pairs if pair[0] not in names)))

    def given(self, settings: Settings) -> Plug:
        """The same target with other settings."""
        return Plug(self.target, settings, self.key)

    def plain(self) -> dict[str, Any]:
        """A section of a configuration: `_target_` and the settings, as dicts and lists."""
        return {TARGET: self.target, **self.settings.plain()}


def frozen(value: Any, key: str = "") -> Value:
    """Freeze a value of a configuration: mappings become Settings, those with a `_target_` plugs, lists tuples."""
    if isinstance(value, Settings | Plug):
        return value
    if isinstance(value, Mapping):
        target = value.get(TARGET)
        if not isinstance(target, str):
            return Settings.of(value, key)
        return Plug(target, Settings.of({name: one for name, one in value.items() if name != TARGET}, key), key)
    if isinstance(value, list | tuple):
        return tuple(frozen(one, key) for one in value)
    return value


def plain(value: Value) -> Any:
    """Thaw a value: the opposite of `frozen`."""
    if isinstance(value, Settings | Plug):
        return value.plain()
    return [plain(one) for one in value] if isinstance(value, tuple) else value


def plug_of(value: Any, key: str) -> Plug | None:
    """The plug at `key`; None where there is none, and for the choice `none`."""
    found = frozen(value, key)
    return None if found is None or (isinstance(found, Plug) and found.target == NONE) else found
