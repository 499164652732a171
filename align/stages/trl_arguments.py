"""What is typed under `sft.args` and its like, checked against TRL's config class before a model loads."""

from __future__ import annotations

import dataclasses
import difflib
import json
from typing import Any, get_args, get_type_hints

from transformers import TrainingArguments

from align.errors import AlignError

OURS = {
    "learning_rate": "learning_rate", "num_train_epochs": "epochs", "max_length": "max_length",
    "per_device_train_batch_size": "batch_size", "output_dir": "the run's folder", "seed": "seed",
}  # fmt: skip


def check_arguments(cls: type[TrainingArguments], given: dict[str, Any], key: str) -> None:
    """Refuses arguments that TRL's config class does not have, those that are ours by another name, and values that are
    no switch or number where there must be one."""
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    types = get_type_hints(cls)
    for name, value in given.items():
        if name in OURS:
            where = OURS[name] if name in ("output_dir", "seed") else f"{key}.{OURS[name]}"
            raise AlignError(f"{key}.args.{name} is set by {where}: write that instead")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise AlignError(
                f"{key}.args.{name}: {cls.__module__.split('.')[0]}.{cls.__name__} has no such argument\n"
                f"  nearest: {', '.join(near) or 'none'}"
            )
        if wanted := _instead(types[name], value):
            shown = value if isinstance(value, str) else json.dumps(value)
            raise AlignError(f"{key}.args.{name}={shown}: write {wanted}")


def _instead(annotation: Any, value: Any) -> str | None:
    """What to write for a value that is not of its field's type; None for one that is, or if several types serve.

    Hydra reads `no` and `off` as strings, which Python takes for true.
    """
    types = set(get_args(annotation) or [annotation])
    if value is None and type(None) in types:
        return None
    match [one for one in types if one is not type(None)]:
        case [one] if one is bool and not isinstance(value, bool):
            return "true or false"
        case [one] if one is int and (isinstance(value, bool) or not isinstance(value, int)):
            return "a whole number"
        case [one] if one is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            return "a number"
    return None
