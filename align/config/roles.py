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
    learning_rate: float = 1e-5
    """AdamW's rate, constant."""
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
    learning_rate: float = "${actor.learning_rate}"  # type: ignore[assignment]
    """AdamW's rate, constant; the actor's unless given."""
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
