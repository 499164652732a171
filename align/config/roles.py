"""Options of the roles, and of how DeepSpeed divides them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class Zero:
    _target_: str = "align.config.Zero"
    stage: int = MISSING
    """ZeRO stage: 1 optimizer state, 2 and gradients, 3 and parameters, divided over the ranks."""
    offload: bool = False
    """Keep what is divided in the CPU's memory."""


@dataclass
class Actor:
    _target_: str = "align.roles.specs.Actor"
    path: str = "auto"
    """The policy PPO starts from; auto: this run's fine-tuned model, else its pretrained one, else `model`."""
    adapter: str = "auto"
    """As `sft.adapter`."""
    learning_rate: Any = "lora:1e-5"
    """AdamW's rate; its peak, if `schedule` or `warmup_steps` moves it. `lora:` as in `sft.learning_rate`."""
    loraplus_lr_ratio: float | None = None
    """As `sft.loraplus_lr_ratio`."""
    schedule: str = "constant"
    """The rate after warm-up: constant, linear or cosine; the last two fall to 0 over `ppo.steps`."""
    warmup_steps: int = 0
    """PPO steps in which the rate rises from 0."""
    peft: Any = None
    """Which weights train: peft@actor.peft=lora, or none for all."""
    zero: Any = None
    """How DeepSpeed divides the actor: zero@actor.zero=stage2."""


@dataclass
class Critic:
    _target_: str = "align.roles.specs.Critic"
    path: str = "auto"
    """What the critic starts from; auto: this run's reward model, else the actor's start."""
    adapter: str = "auto"
    """As `sft.adapter`."""
    backbone: str = "auto"
    """Where the value head sits: adapter (the critic's own adapter on the actor's base), head (the actor's trunk,
    adapter and all), own (a model of its own), or auto: adapter where it can be, else own."""
    trunk_gradient: float = 0.1
    """With critic=head, the share of the value's gradient that shapes the actor's trunk; 0: none."""
    learning_rate: Any = "${actor.learning_rate}"
    """As `actor.learning_rate`, which it is unless given."""
    loraplus_lr_ratio: float | None = "${actor.loraplus_lr_ratio}"  # type: ignore[assignment]
    """As `actor.loraplus_lr_ratio`."""
    schedule: str = "${actor.schedule}"
    """As `actor.schedule`."""
    warmup_steps: int = "${actor.warmup_steps}"  # type: ignore[assignment]
    """As `actor.warmup_steps`."""
    peft: Any = None
    """As `actor.peft`."""
    zero: Any = None
    """As `actor.zero`."""


@dataclass
class Reference:
    _target_: str = "align.roles.specs.Reference"
    path: str = "auto"
    """The policy that the KL penalty holds to; auto: the actor at step 0."""
    zero: Any = None
    """How DeepSpeed divides it: zero@reference.zero=stage3, or stage3_offload."""
