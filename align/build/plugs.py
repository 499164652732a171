"""Objects from plugs: the only caller of Hydra's instantiate. No torch at import."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from align.config import FileDataOptions
from align.config.fields import UNSET, allowed_by, checked_value, types_of, unknown_setting
from align.config.values import TARGET, Plug, Settings, plain
from align.errors import AlignError
from align.imports import import_failed_at, locate


def make(plug: Plug) -> Any:
    """The object that a plug's target makes of its settings. Raises AlignError, with the key, for what it refuses."""
    values = arguments(plug, target_of(plug))
    if unset := [name for name, value in values.items() if value == UNSET]:
        raise AlignError(f"{plug.key}.{unset[0]} is not set\n  use {plug.key}.{unset[0]}=VALUE")
    try:
        return instantiate(OmegaConf.create({TARGET: plug.target, **values}), _convert_="all")
    except InstantiationException as error:
        raise refusal(plug, error.__cause__ or error) from error


def made(plug: Plug, *given: Any, **named: Any) -> Any:
    """The object that a plug's target makes of arguments that the caller has, instead of its settings."""
    try:
        return target_of(plug)(*given, **named)
    except Exception as error:  # whatever a plugin raises
        raise refusal(plug, error) from error


def make_or_keep(plug: Plug) -> Any:
    """As `make` for a class; a function is kept, with its arguments, to be called by the loop."""
    target = target_of(plug)
    return make(plug) if inspect.isclass(target) else partial(target, **arguments(plug, target))


def make_with(plug: Plug, **context: Any) -> Any:
    """As `make`, with those arguments of the context that the target's signature names."""
    target = target_of(plug)
    known = parameters(target)
    given = {name: value for name, value in context.items() if known is None or name in known}
    return made(plug, **{**arguments(plug, target), **given})


def parameters(target: Callable) -> Mapping[str, inspect.Parameter] | None:
    """The arguments that a target takes by name; None where it takes any, or does not say."""
    try:
        known = inspect.signature(target).parameters
    except ValueError:  # a builtin
        return None
    return None if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()) else known


def arguments(plug: Plug, target: Callable) -> dict[str, Any]:
    """A plug's settings as plain values of the types that the target's signature has, those of the environment read.

    Raises AlignError for one that the signature does not have, or whose type, or a field's own range, does not hold it.
    """
    values = OmegaConf.to_container(OmegaConf.create(plug.settings.plain()), resolve=True)
    try:
        kinds = types_of(target)
    except (NameError, TypeError):  # annotations that exist for type checkers alone, or none
        kinds = {}
    known = parameters(target)
    check_names(plug, target)
    ranges = {one.name: allowed_by(target, one) for one in fields(target)} if is_dataclass(target) else {}
    for name, value in values.items():
        usual = known[name].default if known and name in known else None
        if name in kinds and not (value is None and usual is None):
            values[name] = plain(checked_value(value, f"{plug.key}.{name}", kinds[name], ranges.get(name)))
    return values


def check_names(plug: Plug, target: Callable) -> None:
    """Raise AlignError for a setting that the target's signature does not have."""
    known = parameters(target)
    for name, value in plug.settings.items():
        if known is not None and name not in known and not (name.startswith("_") and name.endswith("_")):
            owner = f"{target.__module__}.{target.__qualname__}"
            raise unknown_setting(f"{plug.key}.{name}", plain(value), known, owner)


def refusal(plug: Plug, cause: BaseException) -> AlignError:
    """The error for a target that refuses its arguments, with their key where it begins with the name of one."""
    if isinstance(cause, AlignError):
        return cause
    reason = (str(cause).splitlines() or [type(cause).__name__])[0]
    if (first := re.match(r"\w+", reason)) and first[0] in plug:
        return AlignError(f"{plug.key}.{reason}")
    return AlignError(f"{plug.key}: {plug.target} refuses its arguments: {reason}")


def sources(plug: Plug) -> Any:
    """The object that `make` makes of data; a list of them where `path` is a list of files."""
    paths = plug.get("path") if plug.target == FileDataOptions.TARGET else None
    if not isinstance(paths, tuple) or not paths:
        return make(plug)
    return [make(plug.given(Settings.of({**plug.settings, "path": path}))) for path in paths]


def target_of(plug: Plug) -> Callable:
    """The class or function that a plug's `_target_` names. Raises AlignError where it cannot be imported."""
    try:
        return locate(plug.target)
    except Exception as error:  # whatever a plugin's own import raises
        reason = (str(error).splitlines() or [""])[0]
        raise AlignError(
            f"{plug.key}._target_={plug.target}: cannot be imported: {type(error).__name__}: {reason} "
            f"({import_failed_at(error)})\n"
            "  use module.Class, from the folder you stand in, ./plugins/NAME or what is installed"
        ) from error


def peft(plug: Plug | None) -> Any:
    """A peft.PeftConfig, or None for full fine-tuning. `quantize` is a word about its base, for any method."""
    if plug is None:
        return None
    from align.peft.quantized import check_wanted, on_quantized

    method = on_quantized(make(plug.without("quantize")), plug.get("quantize"))
    check_wanted(method, plug.key)
    return method
