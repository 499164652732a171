"""Options of rollouts, watches and trackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class Rollout:
    _target_: str = "align.rollout.choice.choose"
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
class Watch:
    _target_: str = "align.ppo.watch.Watch"
    judge: Any = None
    """A reward that knows better than the run's own, of what `ppo.eval_every` samples: reward@watch.judge=http."""
    patience: int = 2
    """Evaluations in a row with the reward up and the judge down, after which the watch fires."""
    deviations: float = 2.0
    """Standard errors from which on up is up and down is down, since the evaluation that the judge liked best."""
    action: str = "warn"
    """warn, or stop: the run ends with the policy that the judge liked best."""


@dataclass
class Tracker:
    _target_: str = "align.report.tracker.AccelerateTracker"
    name: str = MISSING
    """A tracker that accelerate knows: tensorboard, wandb, mlflow, comet_ml, trackio …"""
