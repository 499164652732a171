"""The roles as configuration describes them; each `build` makes the thing that computes.

Replaced by a `_target_` of one's own: a class with the same `build`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from align.config import Zero
from align.peft.reference import REFERENCE, add_frozen_copy, computes_nothing_at_first
from align.roles.critic import ValueCritic, value_head
from align.roles.folder import CAUSAL, SCORE
from align.roles.modules import PolicyModule
from align.roles.policy import AdapterReference, FrozenReference, TrainedPolicy
from align.roles.start import Start, start


@dataclass
class Setting:
    """What all roles of one run have in common."""

    device: torch.device
    dtype: torch.dtype
    """Of frozen weights; weights that train are float32."""
    engine: Callable[..., Any]
    """engine(module, learning_rate, max_grad_norm, zero) -> TrainEngine"""
    out: Path
    max_grad_norm: float = 1.0
    tell: Callable[[str], None] = lambda line: None

    @property
    def autocast(self) -> bool:
        return self.dtype == torch.bfloat16


@dataclass
class Actor:
    path: str
    adapter: str
    learning_rate: float
    peft: PeftConfig | None
    zero: Zero | None

    def load(self, setting: Setting) -> Start:
        begun = start(
            self.path, key="actor", head=CAUSAL, peft=self.peft, adapter=self.adapter,
            out=setting.out, dtype=setting.dtype, kinds=(CAUSAL,),
        )  # fmt: skip
        setting.tell(f"actor: {begun.said}")
        return begun

    def build(self, begun: Start, setting: Setting) -> TrainedPolicy:
        module = PolicyModule(begun.model, setting.autocast).to(setting.device).eval()
        engine = setting.engine(module, self.learning_rate, setting.max_grad_norm, self.zero)
        return TrainedPolicy(begun.model, engine, setting.device)


@dataclass
class Reference:
    path: str
    zero: Zero | None

    def build(self, begun: Start, actor: Actor, setting: Setting) -> Callable[[TrainedPolicy], Any]:
        """Takes what it needs of the actor's start before the actor is sharded; call the result with the actor.

        The reference is the policy at step 0. On the actor's own backbone: the base without adapter where
        the adapter starts at identity, else a frozen copy of the adapter. A copy of the whole model where
        the actor trains in full, or where the two are sharded differently.
        """
        if self.path != "auto":
            other = start(
                self.path, key="reference", head=CAUSAL, peft=None, adapter="auto",
                out=setting.out, dtype=setting.dtype, kinds=(CAUSAL,),
            )  # fmt: skip
            setting.tell(f"reference: {other.said}, frozen")
            return self._frozen(other.model, setting)
        sharded = actor.zero is not None and actor.zero.stage == 3
        if isinstance(begun.model, PeftModel) and not sharded and self.zero is None:
            if begun.fresh and computes_nothing_at_first(begun.model.peft_config["default"]):
                setting.tell("reference: the actor's base without its adapter")
                return lambda policy: AdapterReference(policy, None)
            add_frozen_copy(begun.model, REFERENCE)
            setting.tell("reference: a frozen copy of the actor's first adapter, on the same base")
            return lambda policy: AdapterReference(policy, REFERENCE)
        why = "sharded on its own" if isinstance(begun.model, PeftModel) else "the actor trains all weights"
        setting.tell(f"reference: a frozen copy of the actor's model ({why})")
        return self._frozen(copy.deepcopy(begun.model), setting)

    def _frozen(self, model: PreTrainedModel | PeftModel, setting: Setting) -> Callable[[TrainedPolicy], Any]:
        model.requires_grad_(False)  # in the actor's own dtype: another one would be another policy
        module = PolicyModule(model, setting.autocast).to(setting.device).eval()
        engine = setting.engine(module, None, 0.0, self.zero)
        return lambda policy: FrozenReference(engine, setting.device)


@dataclass
class Critic:
    path: str
    adapter: str
    learning_rate: float
    peft: PeftConfig | None
    zero: Zero | None

    def build(self, setting: Setting) -> ValueCritic:
        """A backbone with a value head: from a reward model, its head divided by the score's deviation."""
        begun = start(
            self.path, key="critic", head=SCORE, peft=self.peft, adapter=self.adapter,
            out=setting.out / "critic", dtype=setting.dtype,
        )  # fmt: skip
        head, said = value_head(begun.model, self.path)
        setting.tell(f"critic: {begun.said}; {said}")
        return ValueCritic.build(begun.model, head, self, setting)
