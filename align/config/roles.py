"""Options of the roles, and of how DeepSpeed divides them."""

from __future__ import annotations

from dataclasses import dataclass

from align.config.choices import ADAPTERS, CRITIC_BACKBONES, FOR_LORA, SCHEDULES
from align.config.fields import choice, number, section, value
from align.config.values import Plug


@dataclass(frozen=True)
class Zero:
    """Division of a model over the ranks by DeepSpeed."""

    stage: int
    """ZeRO stage: 1 optimizer state, 2 and gradients, 3 and parameters."""
    offload: bool = False
    """Keep what is divided in the CPU's memory."""


@section("zero")
class ZeroOptions:
    TARGET = "align.config.Zero"

    stage: int = value()
    """ZeRO stage: 1 optimizer state, 2 and gradients, 3 and parameters, divided over the ranks."""
    offload: bool = False
    """Keep what is divided in the CPU's memory."""


@section("actor")
class ActorOptions:
    TARGET = "align.roles.specs.Actor"

    path: str = "auto"
    """The policy PPO starts from; auto: this run's newest policy, else `model`."""
    adapter: str = choice("auto", *ADAPTERS)
    """As `sft.adapter`."""
    learning_rate: float | str = number("lora:1e-5", above=0, high=1, prefix=FOR_LORA)
    """AdamW's rate; its peak, if `schedule` or `warmup_steps` moves it. `lora:` as in `sft.learning_rate`."""
    loraplus_lr_ratio: float | None = number(None, above=0, high=1000, rare=True)
    """As `sft.loraplus_lr_ratio`."""
    schedule: str = choice("constant", *SCHEDULES, rare=True)
    """The rate after warm-up: constant, linear or cosine; the last two fall to 0 over `ppo.steps`."""
    warmup_steps: int = number(0, low=0, rare=True)
    """PPO steps in which the rate rises from 0."""
    peft: Plug | None = None
    """Weights that train: peft@actor.peft=lora, or none for all."""
    zero: Plug | None = None
    """Division of the actor over the ranks by DeepSpeed: zero@actor.zero=stage2."""


@section("critic")
class CriticOptions:
    TARGET = "align.roles.specs.Critic"

    path: str = "auto"
    """The model that the critic starts from; auto: this run's reward model, else the actor's start."""
    adapter: str = choice("auto", *ADAPTERS)
    """As `sft.adapter`."""
    backbone: str = choice("auto", *CRITIC_BACKBONES)
    """Place of the value head: adapter (the critic's own adapter on the actor's base), head (the actor's trunk,
    adapter and all), own (a separate model), or auto: adapter where it can be, else own."""
    trunk_gradient: float = number(0.1, low=0, high=100, rare=True)
    """With critic=head, the share of the value's gradient that shapes the actor's trunk; 0: none."""
    learning_rate: float | str = number("lora:1e-5", above=0, high=1, prefix=FOR_LORA, follows="actor.learning_rate")
    """As `actor.learning_rate`, which it is unless given."""
    loraplus_lr_ratio: float | None = number(None, above=0, high=1000, follows="actor.loraplus_lr_ratio", rare=True)
    """As `actor.loraplus_lr_ratio`."""
    schedule: str = choice("constant", *SCHEDULES, follows="actor.schedule", rare=True)
    """As `actor.schedule`."""
    warmup_steps: int = number(0, low=0, follows="actor.warmup_steps", rare=True)
    """As `actor.warmup_steps`."""
    peft: Plug | None = None
    """As `actor.peft`."""
    zero: Plug | None = None
    """As `actor.zero`."""


@section("reference")
class ReferenceOptions:
    TARGET = "align.roles.specs.Reference"

    path: str = "auto"
    """The policy that the KL penalty holds to; auto: the actor at step 0."""
    zero: Plug | None = None
    """Division of the reference over the ranks by DeepSpeed: zero@reference.zero=stage3, or stage3_offload."""
