"""From nodes of a configuration to objects: the only caller of Hydra's instantiate. No torch at import."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from align.checks import absent
from align.config import FileData
from align.errors import AlignError
from align.imports import import_failed_at

APART = ("path", "peft", "zero", "data", "judge")
"""What a role, a stage or a watch is given apart from its own scalars."""


def call(node: DictConfig, key: str) -> Any:
    """What the `_target_` of a plug makes of its arguments; what it refuses is said with its key."""
    check_given(node, [str(name) for name in node], key)
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise refusal(node, error.__cause__ or error, key) from error


def made(node: DictConfig, key: str, *given: Any, **named: Any) -> Any:
    """What the target of a node makes of arguments that the caller has; what it refuses is said with its key."""
    try:
        return target_of(node, key)(*given, **named)
    except Exception as error:  # whatever a plugin raises
        raise refusal(node, error, key) from error


def check_given(node: DictConfig, given: list[str], key: str) -> None:
    """The target takes all that is given, and nothing is missing."""
    check_arguments(target_of(node, key), given, key)
    if missing := sorted(OmegaConf.missing_keys(node)):
        raise AlignError(f"{key}.{missing[0]} is not set\n  write {key}.{missing[0]}=VALUE")


def refusal(node: DictConfig, cause: BaseException, key: str) -> AlignError:
    """What a target said of its arguments, with their key where it begins with the name of one."""
    if isinstance(cause, AlignError):
        return cause
    reason = (str(cause).splitlines() or [type(cause).__name__])[0]
    if (first := re.match(r"\w+", reason)) and first[0] in node:
        return AlignError(f"{key}.{reason}")
    return AlignError(f"{key}: {node._target_} refuses its arguments: {reason}")


def sources(node: DictConfig, key: str) -> Any:
    """What `call` makes of a node of data; a list of them where its `path` is a list of files."""
    paths = node.get("path") if node.get("_target_") == FileData._target_ else None
    if not OmegaConf.is_list(paths) or not paths:
        return call(node, key)
    return [call(OmegaConf.merge(node, {"path": path}), key) for path in paths]


def target_of(node: DictConfig | None, key: str) -> Callable:
    """The class or function that a node's `_target_` names."""
    name = None if node is None else node.get("_target_")
    if not isinstance(name, str):
        raise AlignError(
            f"{key} has no _target_, so there is nothing to make of it\n  write {key}._target_=module.Class"
        )
    try:
        return locate(name)
    except Exception as error:  # whatever a plugin's own import raises
        reason = (str(error).splitlines() or [""])[0]
        raise AlignError(
            f"{key}._target_={name} cannot be imported: {type(error).__name__}: {reason} ({import_failed_at(error)})\n"
            "  write module.Class, from the folder you stand in, ./plugins/NAME or what is installed"
        ) from error


def locate(name: str) -> Any:
    """What a dotted name stands for; raises what its import raises, which Hydra's own look-up logs and wraps."""
    home, _, last = name.rpartition(".")
    if not home:
        raise ImportError(f"{name} names no module")
    try:
        module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        inside = "." in home and error.name and f"{home}.".startswith(f"{error.name}.")
        if not inside:
            raise
        module = locate(home)
    return getattr(module, last)


def check_arguments(target: Callable, given: list[str], key: str) -> None:
    """Refuses what the signature of a target does not have."""
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
                f"{key}.{name}: {target.__module__}.{target.__qualname__} has no such argument\n"
                f"  nearest: {', '.join(near)}"
            )


def call_or_keep(node: DictConfig, key: str) -> Any:
    """As `call` for a class; a function is kept, with its arguments, to be called by the loop."""
    target = target_of(node, key)
    if inspect.isclass(target):
        return call(node, key)
    arguments = {name: value for name, value in plain_values(node).items() if not name.startswith("_")}
    check_arguments(target, list(arguments), key)
    return partial(target, **arguments)


def peft(node: DictConfig | None, key: str) -> Any:
    """A peft.PeftConfig, or None for full fine-tuning. `quantize` is a word about its base, for any method."""
    if absent(node):
        return None
    from align.peft.quantized import check_wanted, on_quantized

    settings = OmegaConf.masked_copy(node, [str(name) for name in node if name != "quantize"])
    method = on_quantized(call(settings, key), node.get("quantize"))
    check_wanted(method, key)
    return method


def plain_values(node: DictConfig) -> dict[str, Any]:
    """The node's own values, without `_target_` and without what is built apart."""
    values = OmegaConf.to_container(node, resolve=True)
    return {name: value for name, value in values.items() if name != "_target_" and name not in APART}


def as_dataclass(node: DictConfig, cls: type) -> Any:
    """The node's values in its dataclass; nodes inside are left out."""
    values = OmegaConf.to_container(node, resolve=True)
    names = {f.name for f in fields(cls)} - {"data", "peft"}
    plugs = {name for name, value in values.items() if isinstance(value, dict) and "_target_" in value}
    return cls(**{name: value for name, value in values.items() if name in names - plugs})
