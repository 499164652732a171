"""Checks of what plugs of the user's own are and return, each with the plug's name.

Shapes: B completions, T response tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from align.errors import AlignError
from align.types import Advantage, Reward, RolloutEngine

PROTOCOLS = {
    "reward": ("Reward", ("wants",)), "advantage": ("Advantage", ("needs_critic", "min_samples")),
    "rollout": ("RolloutEngine", ("name",)),
}  # fmt: skip
"""Protocol of each plug in align/types.py, and the attributes that PPO reads."""
AXES = {1: "(completions,)", 2: "(completions, tokens)"}


def check_attributes(reward: Reward, advantage: Advantage, rollout: RolloutEngine) -> None:
    """Raise AlignError for a plug that lacks an attribute of its Protocol."""
    for (key, (protocol, names)), plug in zip(PROTOCOLS.items(), (reward, advantage, rollout), strict=True):
        if missing := [name for name in names if not hasattr(plug, name)]:
            raise AlignError(
                f"{key}={name_of(plug)}: it has no {missing[0]}\n  use the attributes of align.types.{protocol}"
            )


def check_shape(key: str, plug: Any, noun: str, found: Any, like: Tensor) -> None:
    """Raise AlignError where a plug's result is no tensor of the shape of `like`, a tensor with B or BT."""
    shape = tuple(found.shape) if isinstance(found, Tensor) else None
    if shape != tuple(like.shape):
        got = f"a tensor of shape {shape}" if shape is not None else f"{type(found).__name__}"
        raise AlignError(
            f"{key}={name_of(plug)}: it returned {got} for {noun}\n"
            f"  use a tensor of shape {tuple(like.shape)} {AXES[like.dim()]}"
        )


def name_of(plug: Any) -> str:
    """The name of a function, or of an object's class."""
    return getattr(plug, "__qualname__", None) or f"{type(plug).__module__}.{type(plug).__qualname__}"
