"""The roles as configuration describes them; each is placed on a backbone.

Replaced by a `_target_` of one's own: a class with the same `load` or `place`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from peft import PeftConfig, PeftModel
from torch import Tensor

from align.config import Zero
from align.config.choices import CRITIC_BACKBONES
from align.errors import AlignError
from align.peft.adapters import REFERENCE as COPY
from align.peft.adapters import add_frozen_copy, computes_nothing_yet
from align.peft.stateful import planned
from align.roles.backbone import ACTOR, CRITIC, REFERENCE
from align.roles.critic import saved_score, take_score, value_head
from align.roles.folder import CAUSAL, SCORE
from align.roles.loading import load_frozen, look
from align.roles.modules import plain
from align.roles.placement import PlacedBackbone, Placement, RunContext
from align.roles.start import Start, start


@dataclass
class Actor:
    path: str
    adapter: str
    learning_rate: float
    peft: PeftConfig | None
    zero: Zero | None
    schedule: str = "constant"
    warmup_steps: int = 0
    loraplus_lr_ratio: float | None = None

    def load(self, context: RunContext) -> Start:
        begun = start(
            self.path, key="actor", head=CAUSAL, peft=planned(self.peft, context.steps, "actor"), adapter=self.adapter,
            out=context.out, dtype=context.dtype, kinds=(CAUSAL,),
        )  # fmt: skip
        context.tell(f"actor: {begun.description}")
        return begun


@dataclass
class Reference:
    path: str
    zero: Zero | None

    def place(self, placement: Placement) -> None:
        """The policy at step 0; placed before critic and reward, since it may copy the actor's model.

        On the actor's own backbone: the base without adapter where the adapter starts at identity, else a frozen
        copy of the adapter. A copy of the whole model where the actor trains in full, or where the two are
        sharded differently.
        """
        tell, actor, home = placement.context.tell, placement.actor, placement.home
        if self.path != "auto":
            self._other(placement)
            return
        sharded = placement.spec.zero is not None and placement.spec.zero.stage == 3
        if not isinstance(actor.model, PeftModel) or sharded or self.zero is not None:
            why = "sharded on its own" if isinstance(actor.model, PeftModel) else "the actor trains all weights"
            tell(f"reference: a frozen copy of the actor's model ({why})")
            # in the actor's own dtype: another one would be another policy
            self._frozen(placement, copy.deepcopy(actor.model))
        elif actor.fresh and computes_nothing_yet(actor.model):
            tell("reference: the actor's base without its adapter")
            home.backbone.adapters[REFERENCE] = None
        else:
            add_frozen_copy(actor.model, COPY)
            tell("reference: a frozen copy of the actor's first adapter, on the same base")
            home.backbone.adapters[REFERENCE] = COPY

    def _other(self, placement: Placement) -> None:
        """The policy of a folder: its adapter on the actor's base where it stands there, else its model."""
        folder = look(self.path, "reference", (CAUSAL,))
        if folder.base and self.zero is None:
            peft = PeftConfig.from_pretrained(folder.path)
            if not placement.why_apart(folder, peft, None):
                _, said, apart = placement.join_actor(REFERENCE, folder, peft, None, trained=False)
                if not apart:
                    placement.context.tell(f"reference: {said}, frozen, on the actor's base")
                    return
        placement.context.tell(f"reference: {folder.path}, frozen")
        self._frozen(placement, load_frozen(folder, placement.context.dtype))

    def _frozen(self, placement: Placement, model: PeftModel) -> None:
        adapter = "default" if isinstance(model, PeftModel) else None
        placement.add(model.requires_grad_(False), {REFERENCE: adapter}, self.zero)


@dataclass
class Critic:
    path: str
    adapter: str
    learning_rate: float
    peft: PeftConfig | None
    zero: Zero | None
    backbone: str = "auto"
    trunk_gradient: float = 0.1
    schedule: str = "constant"
    warmup_steps: int = 0
    loraplus_lr_ratio: float | None = None

    def place(self, placement: Placement) -> None:
        """A value head on the actor's trunk, with another adapter on the actor's base, or on another backbone.

        From a reward model: its adapter, and its head divided by the score's deviation.
        """
        if self.backbone not in CRITIC_BACKBONES:
            raise AlignError(f"critic.backbone={self.backbone}: use one of {', '.join(CRITIC_BACKBONES)}")
        if self.backbone == "head":
            self._on_the_trunk(placement)
            return
        apart = "backbone=own" if self.backbone == "own" else self._beside_the_actor(placement)
        if apart and self.backbone == "adapter":
            raise AlignError(
                f"critic=adapter: the critic cannot sit on the actor's base: {apart}\n"
                "  use critic=own, critic=head, or critic=auto"
            )
        if apart:
            self._alone(placement, apart)

    def _on_the_trunk(self, placement: Placement) -> None:
        """The trunk is the actor's, adapter and all; how far the value shapes it is `trunk_gradient`."""
        home = placement.home.backbone
        body = [n for n, p in home.model.named_parameters() if p.requires_grad and "lm_head" not in n]
        if self.trunk_gradient and not body:
            raise AlignError(
                "critic=head: the actor trains nothing in its trunk that a value could shape\n"
                "  use critic.trunk_gradient=0, or critic=own"
            )
        home.adapters[CRITIC] = home.adapters[ACTOR]
        home.value_gradient = self.trunk_gradient
        said = self._give_head(placement.home, None)
        placement.trains(CRITIC, placement.home, self)
        placement.context.tell(f"critic: {said} on the actor's trunk (critic.peft and critic.zero are the actor's)")

    def _beside_the_actor(self, placement: Placement) -> str:
        folder = look(self.path, "critic", (CAUSAL, SCORE))
        if apart := placement.why_apart(folder, self.peft, self.zero, self.adapter):
            return apart
        plan, said, apart = placement.join_actor(CRITIC, folder, self.peft, self.zero, trained=True)
        if apart:
            return apart
        score = saved_score(folder.path) if folder.base else None
        head = self._give_head(plan, score)
        placement.trains(CRITIC, plan, self)
        placement.context.tell(f"critic: {said} on the actor's base; {head}")
        return ""

    def _alone(self, placement: Placement, why: str) -> None:
        context = placement.context
        begun = start(
            self.path, key="critic", head=SCORE, peft=planned(self.peft, context.steps, "critic"), adapter=self.adapter,
            out=context.out / "critic", dtype=context.dtype,
        )  # fmt: skip
        score = take_score(begun.model)
        plan = placement.add(
            begun.model, {CRITIC: "default" if isinstance(begun.model, PeftModel) else None}, self.zero
        )
        head = self._give_head(plan, score)
        placement.trains(CRITIC, plan, self)
        context.tell(f"critic: {begun.description}; {head}; its own backbone ({why})")

    def _give_head(self, plan: PlacedBackbone, score_1D: Tensor | None) -> str:
        config = plain(plan.backbone.model).config
        width = getattr(config, "word_embed_proj_dim", config.hidden_size)  # OPT's 350M has a narrower end
        plan.backbone.value_head, said = value_head(score_1D, self.path, width)
        return said
