"""Options of rewards, rollouts and trackers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from align.config.open_node import open_node


@dataclass
class RewardModel:
    _target_: str = "align.rewards.model.ModelReward"
    path: str = "auto"
    """A reward model's folder or hub name; auto: this run's reward model."""
    normalize: bool = True
    """Shift and scale scores to mean 0 and deviation 1 on the samples that the model's card.json tells of."""
    backbone: str = "auto"
    """shared (its adapter and score on the actor's base), own (a model of its own), or auto: shared where it can be."""
    zero: Any = None
    """As `reference.zero`."""


@dataclass
class RewardFunction:
    _target_: str = "align.rewards.function.FunctionReward"
    fn: str = MISSING
    """module.function with TRL's signature, from an installed package or the folder one stands in."""
    args: dict[str, Any] = field(default_factory=open_node)
    """Further keyword arguments of the function."""
    name: str | None = None
    """Name in logs; unset: the function's own."""


@dataclass
class RewardSum:
    _target_: str = "align.rewards.sum.SumReward"
    terms: dict[str, Any] = field(default_factory=open_node)
    """Rewards by name: +reward@reward.terms.polite=kind_words"""
    weights: dict[str, float] = field(default_factory=open_node)
    """Weight of each term; 1 where none is given."""


@dataclass
class Rollout:
    _target_: str = "align.rollout.auto.choose"
    engine: str = MISSING
    """auto (vLLM where it is installed and serves this actor, else transformers), vllm or hf."""
    fallback: str = "hf"
    """Where vLLM cannot serve the actor's PEFT method: hf (transformers writes) or error."""
    temperature: float = 1.0
    """Of sampling; log-probabilities of policy, old policy and reference are taken at it."""
    max_new_tokens: int = 64
    """Longest response, in tokens."""
    samples_per_prompt: int = 1
    """Completions of each prompt; a step's batch_size counts completions."""
    batch_size: int = 64
    """Completions written at a time."""
    kv_cache_mib: int = 128
    """Memory of vLLM's key-value cache."""
    share_weights: Any = "auto"
    """vLLM in the process computes with the trainer's own tensors: auto (where it can), true or false."""


@dataclass
class Tracker:
    _target_: str = "align.report.tracker.AccelerateTracker"
    name: str = MISSING
    """A tracker that accelerate knows: tensorboard, wandb, mlflow, comet_ml, trackio …"""
