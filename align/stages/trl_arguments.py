"""What is typed under `sft.args` and its like, checked against TRL's config class before a model loads."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable
from typing import Any, get_args, get_type_hints

from transformers import TrainingArguments
from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig

from align.errors import AlignError

OURS = {
    "learning_rate": "learning_rate", "num_train_epochs": "epochs", "max_length": "max_length",
    "per_device_train_batch_size": "batch_size", "output_dir": "the run's folder", "seed": "seed",
}  # fmt: skip
EVALUATES = ("steps", "epoch")
REPORTED: dict[type[TrainingArguments], tuple[str, ...]] = {
    SFTConfig: ("loss", "entropy", "mean_token_accuracy", "aux_loss"),
    RewardConfig: ("loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"),
    DPOConfig: (
        "loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen",
        "logps/rejected", "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy", "aux_loss",
    ),
    KTOConfig: (
        "loss", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected",
        "logits/chosen", "logits/rejected", "kl", "entropy", "aux_loss",
    ),
}  # fmt: skip
"""What TRL's trainers (1.16) say of held-out rows, each behind `eval_`."""


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


def check_best(settings: dict[str, Any], asked: str, key: str) -> None:
    """Raises AlignError where `load_best_model_at_end`, which `asked` for, has no saved evaluations to choose among."""
    evaluated, saved = (settings.get(name, "no") for name in ("eval_strategy", "save_strategy"))
    if not settings.get("load_best_model_at_end") or (evaluated in EVALUATES and saved in (evaluated, "best")):
        return
    when = next((one for one in (evaluated, saved) if one in EVALUATES), "epoch")
    raise AlignError(
        f"{asked}: the best is of the evaluations that are saved, and with eval_strategy={evaluated} and "
        f"save_strategy={saved} there are none\n"
        f"  write +{key}.args.eval_strategy={when} +{key}.args.save_strategy={when}, or leave it out"
    )


def check_metric(args: TrainingArguments, key: str, tasks: Iterable[str] = ()) -> None:
    """Raises AlignError where `metric_for_best_model` is no figure of held-out rows; each of `tasks` has its own."""
    if (asked := args.metric_for_best_model) is None:
        if args.save_strategy == "best":
            raise AlignError(
                f"{key}.args.save_strategy=best: by which figure?\n  write +{key}.args.metric_for_best_model=eval_loss"
            )
        return
    parts = [f"eval_{task}" for task in tasks] or ["eval"]
    known = [f"{part}_{name}" for part in parts for name in REPORTED[type(args)]]
    name = asked if asked.startswith("eval_") else f"eval_{asked}"
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0)
        raise AlignError(
            f"{key}.args.metric_for_best_model={asked}: nothing that {key} tells of held-out rows has that name\n"
            f"  write another, nearest: {', '.join(near)}"
        )


def check_held_out(args: TrainingArguments, held_out: list, key: str) -> None:
    """Raises AlignError where `eval_strategy` asks for held-out rows and there are none."""
    if args.eval_strategy != "no" and not held_out:
        raise AlignError(
            f"{key}.args.eval_strategy={args.eval_strategy.value}: no rows are held out\n"
            f"  write {key}.data.eval_share=0.05, or leave it out"
        )
