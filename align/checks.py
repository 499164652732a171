"""What a configuration must be, as far as it can be told without importing torch or reading a model."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.config import Evaluate, Sampled, none
from align.config.choices import (
    ADAPTERS,
    CRITIC_BACKBONES,
    DPO_LOSSES,
    KTO_LOSSES,
    LINEARS,
    PRECISIONS,
    RM_LOSSES,
    SCHEDULES,
    SFT_LOSSES,
)
from align.errors import AlignError, AlignWarning, typed
from align.stages.order import order
from align.stages.ranges import check_numbers, check_ppo, check_pretrain

NONE = f"{none.__module__}.{none.__qualname__}"
CHOICES = {"adapter": ADAPTERS, "schedule": SCHEDULES, "backbone": CRITIC_BACKBONES}
"""Of the nodes of stages and roles."""
LOSSES = {"rm": RM_LOSSES, "dpo": DPO_LOSSES, "kto": KTO_LOSSES}
INSTEAD = {
    "model": "a folder or a hub name such as org/name", "runs": "a folder, such as runs=runs",
    "device": "one of auto, cpu, cuda, cuda:1", "precision": f"one of {', '.join(PRECISIONS)}",
}  # fmt: skip
EXAMPLES = {
    "fn": ("my_rewards.brevity", " (a function of my_rewards.py in the folder you stand in)"),
    "buffer": ("16", ""),
    "pattern": ("<think>.*</think>.*", ""),
    "schema": ("answer.schema.json", ""),
    "column": ("task", " (a column of the prompts)"),
    "url": ("http://localhost:8000/score", " (of a chat server: http://localhost:8000/v1)"),
}


def absent(node: DictConfig | None) -> bool:
    """The node is none: not there, or a `none` plug."""
    return node is None or node.get("_target_") == NONE


def check(cfg: DictConfig) -> list[str]:
    """Refuses what is wrong in the root keys and in the numbers; returns the stages in the order they run."""
    check_root(cfg)
    named = OmegaConf.to_object(cfg.stages) if OmegaConf.is_list(cfg.stages) else cfg.stages
    stages = order(named, judged(cfg) or asks(cfg), sampled(cfg.rm))
    for key in sorted(OmegaConf.missing_keys(cfg)):
        example, remark = EXAMPLES.get(key.rpartition(".")[2], ("VALUE", ""))
        raise AlignError(f"{key} is not set\n  write {typed(key, example)}{remark}")
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
    used = [*stages, "rollout"]
    if "ppo" in stages:
        used += ["actor", "critic"]
    for key in used:
        check_numbers(key, values[key])
        for name, choices in CHOICES.items():
            check_choice(f"{key}.{name}", values[key].get(name, choices[0]), choices)
    if "pretrain" in stages:
        check_pretrain(values["pretrain"])
    for name, losses in LOSSES.items():
        if name in stages:
            said = values[name]["loss"]
            for one in said if name == "dpo" and isinstance(said, list) and said else [said]:
                check_choice(f"{name}.loss", one, losses)
    for name in ("sft", "best_of"):
        if name in stages:
            check_choice(f"{name}.args.loss_type", values[name]["args"].get("loss_type", SFT_LOSSES[0]), SFT_LOSSES)
    if "ppo" in stages:
        check_ppo(values["ppo"])
    warn_of_idle(values["evaluate"])
    return stages


def warn_of_idle(evaluate: dict[str, Any]) -> None:
    """Says which settings of the evaluation are of answers that nobody asks for."""
    usual = vars(Evaluate())
    idle = [name for name in ("metrics", "pattern", "schema") if evaluate[name] != usual[name]]
    if idle and not evaluate["shots"]:
        said = " and ".join(f"evaluate.{name}={evaluate[name]}" for name in idle)
        warnings.warn(
            f"{said}: of answers to held-out questions, and evaluate.shots=[] asks none; write evaluate.shots=[0]",
            AlignWarning,
            stacklevel=2,
        )


def check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises AlignError, with the nearest, for a word that is none of the choices."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"\n  nearest: {near[0]}" if near else ""
        raise AlignError(f"{key}={value}: write one of {', '.join(choices)}{hint}")


def judged(cfg: DictConfig) -> bool:
    """A rule scores completions in the evaluation."""
    return cfg.evaluate.judge is not None


def asks(cfg: DictConfig) -> bool:
    """The evaluation has something to do beside what a rule scores."""
    return bool(cfg.evaluate.shots) or cfg.evaluate.diversity or not absent(cfg.evaluate.general)


def sampled(stage: DictConfig) -> bool:
    """A stage's data are what this run's stage `preferences` writes."""
    data = stage.get("data")
    return isinstance(data, DictConfig) and data.get("_target_") == Sampled._target_ and data.path == "auto"


def check_root(cfg: DictConfig) -> None:
    """The keys at the top, which have no dataclass that would hold them to their types."""
    name, seed = cfg.name, cfg.seed
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        raise AlignError(f"name={name}: write a word, such as name=first")
    if set("/\\") & set(str(name)) or str(name).startswith("."):
        raise AlignError(
            f"name={name} names a folder in {cfg.runs}: write it without slashes, not beginning with a dot"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise AlignError(f"seed={seed}: write a whole number from 0 to {2**32 - 1}")
    for key in ("model", "device", "precision", "runs"):
        value = cfg[key]
        if not (isinstance(value, str) and value.strip()) and not (key == "model" and value is None):
            raise AlignError(f"{key}={value}: write {INSTEAD[key]}")
    for key, choices in (("precision", PRECISIONS), ("cpu_linear", LINEARS)):
        check_choice(key, cfg[key], choices)
