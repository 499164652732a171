"""A space as its setting takes it: whole numbers, fractions, or none where the setting is no number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.nodes import BooleanNode, FloatNode, IntegerNode, StringNode, ValueNode

from align.config.choices import FOR_LORA
from align.errors import AlignError
from align.search.space import Space


def fitted(space: Space, cfg: DictConfig) -> Space:
    """The space of a setting of `cfg`. Raises AlignError for a range of numbers that the setting does not take."""
    if space.kind == "choice":
        return space
    setting = _setting(cfg, space.name)
    value = setting._value() if isinstance(setting, ValueNode) else None
    here = f"search: {space.name}={space.text}"
    if isinstance(setting, BooleanNode) or isinstance(value, bool):
        raise AlignError(f"{here}: it is true or false\n  write '{space.name}=choice(true,false)'")
    if not _numeric(setting, value):
        told = "a node of settings" if value is None else value
        raise AlignError(f"{here}: it is {told}, no number\n  write '{space.name}=choice(…)'")
    counted = isinstance(setting, IntegerNode) or (type(value) is int and space.whole)
    if counted and not (space.whole and space.kind in ("range", "log")):
        low, high = int(space.low), int(space.high)
        raise AlignError(
            f"{here}: it takes whole numbers\n  write range({low},{high + 1}), which ends before {high + 1}"
        )
    if space.kind == "range":
        return space
    return replace(space, whole=space.whole and counted)


def _setting(cfg: DictConfig, name: str) -> Any:
    """The node of a setting, or that which it refers to; None where a `+` is to add it."""
    owner, _, last = name.rpartition(".")
    node = OmegaConf.select(cfg, owner) if owner else cfg
    found = node._get_node(last) if isinstance(node, DictConfig) and last in node else None
    return None if found is None else found._maybe_dereference_node()


def _numeric(setting: Any, value: Any) -> bool:
    """A setting that is not there, or null and of no type, may become a number; a rate for LoRA is one."""
    if setting is None or isinstance(setting, IntegerNode | FloatNode):
        return True
    if not isinstance(setting, ValueNode) or isinstance(setting, StringNode):
        return False
    return value is None or isinstance(value, int | float) or str(value).startswith(FOR_LORA)
