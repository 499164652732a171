"""A nested configuration by its dotted keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def leaves(settings: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its whole key, which begins with `prefix`; a list is a value, and so is an empty section.

    >>> dict(leaves({"ppo": {"steps": 3, "data": {}}, "stages": ["ppo"]}))
    {'ppo.steps': 3, 'ppo.data': {}, 'stages': ['ppo']}
    """
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
