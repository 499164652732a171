"""Options of rollouts, watches and trackers."""

from __future__ import annotations

from align.config.fields import choice, number, section, value
from align.config.values import Plug


@section("rollout")
class RolloutOptions:
    TARGET = "align.rollout.choice.choose"

    engine: str = choice("auto", "auto", "vllm", "hf")
    """auto (vLLM where it is installed and serves this actor, else transformers), vllm or hf."""
    fallback: str = choice("hf", "hf", "error", rare=True)
    """Fallback where vLLM cannot serve the actor's PEFT method: hf (transformers generates) or error."""
    temperature: float = number(1.0, above=0, high=100)
    """Of sampling; log-probabilities of policy, old policy and reference are taken at it."""
    max_new_tokens: int = number(64, low=1, unit="tokens")
    """Longest response, in tokens."""
    samples_per_prompt: int = number(1, low=1)
    """Completions of each prompt; a step's batch_size counts completions."""
    batch_size: int = number(64, low=1)
    """Completions written at a time."""
    kv_cache_mib: int = number(128, low=1, unit="MiB", rare=True)
    """Memory of vLLM's key-value cache."""
    share_weights: bool | str = value("auto", rare=True)
    """vLLM in the process computes with the trainer's own tensors: auto (where it can), true or false."""


@section("watch")
class WatchOptions:
    TARGET = "align.ppo.watch.Watch"

    judge: Plug | None = None
    """A reward that knows better than the run's own, of what `ppo.eval_every` samples: reward@watch.judge=http."""
    patience: int = number(2, low=1)
    """Evaluations in a row with the reward up and the judge down, after which the watch fires."""
    deviations: float = number(2.0, low=0)
    """Standard errors from which on up is up and down is down, since the evaluation that the judge liked best."""
    action: str = choice("warn", "warn", "stop")
    """warn, or stop: the run ends with the policy that the judge liked best."""


@section("tracker")
class TrackerOptions:
    TARGET = "align.report.tracker.AccelerateTracker"

    name: str = value()
    """A tracker that accelerate knows: tensorboard, wandb, mlflow, comet_ml, trackio …"""
