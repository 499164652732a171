"""JSON of what a run leaves in files."""

from __future__ import annotations

import json
import math
from typing import Any

from align.secrets import hide_in


def json_text(value: Any, *, data: bool = False, **options: Any) -> str:
    """`value` as JSON that every reader takes: null for numbers that are not finite, no secrets.

    `data` are rows that later stages read, whose texts stay as they are. Options are json.dumps'.

    >>> json_text({"loss": float("nan"), "kl": [1.5, float("inf")]})
    '{"loss": null, "kl": [1.5, null]}'
    """
    found = finite(value)
    return json.dumps(found if data else hide_in(found), allow_nan=False, **options)


def finite(value: Any) -> Any:
    """`value` with None in the place of each number that is not finite, in lists and dictionaries, too."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
