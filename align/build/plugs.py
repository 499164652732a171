"""Objects from plugs: the only caller of Hydra's instantiate. No torch at import."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from align.config import FileDataOptions
from align.config.fields import shown
from align.config.values import Plug, Settings
from align.errors import AlignError
from align.imports import import_failed_at, locate


def make(plug: Plug) -> Any:
    """The object that a plug's target makes of its settings. Raises AlignError, with the key, for what it refuses."""
    check_arguments(plug, target_of(plug), list(plug.settings))
    try:
        return instantiate(OmegaConf.create(plug.plain()), _convert_="all")
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
    if inspect.isclass(target):
        return make(plug)
    check_arguments(plug, target, list(plug.settings))
    return partial(target, **arguments(plug))


def make_with(plug: Plug, **context: Any) -> Any:
    """As `make`, with those arguments of the context that the target's signature names."""
    target = target_of(plug)
    known = inspect.signature(target).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    check_arguments(plug, target, list(plug.settings))
    given = {name: value for name, value in context.items() if name in known or takes_all}
    return made(plug, **{**arguments(plug), **given})


def arguments(plug: Plug) -> dict[str, Any]:
    """A plug's settings as plain values, those from the environment read."""
    return OmegaConf.to_container(OmegaConf.create(plug.settings.plain()), resolve=True)


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


def check_arguments(plug: Plug, target: Callable, given: list[str]) -> None:
    """Raise AlignError for an argument that the signature of a target does not have."""
    try:
        known = inspect.signature(target).parameters
    except ValueError:  # a builtin that does not say what it takes
        return
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in given:
        if name not in known and not (name.startswith("_") and name.endswith("_")):
            near = difflib.get_close_matches(name, known, n=3) or list(known)[:8]
            raise AlignError(
                f"{plug.key}.{name}={shown(plug.get(name))}: {target.__module__}.{target.__qualname__} has no such "
                f"argument\n  nearest: {', '.join(near)}"
            )


def peft(plug: Plug | None) -> Any:
    """A peft.PeftConfig, or None for full fine-tuning. `quantize` is a word about its base, for any method."""
    if plug is None:
        return None
    from align.peft.quantized import check_wanted, on_quantized

    method = on_quantized(make(plug.without("quantize")), plug.get("quantize"))
    check_wanted(method, plug.key)
    return method
