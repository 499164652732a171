"""The backbones of a run and the roles on each, while the roles are built: their engines come last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from align.config import Zero
from align.engine.linear import give_kernel
from align.engine.lora import use_fast_loras
from align.engine.plain import Schedule
from align.peft.adapters import add_adapter, kept_trainable
from align.peft.checkpointing import recompute_layers
from align.peft.quantized import wanted
from align.peft.routes import changes_the_base
from align.peft.stateful import hooks_of
from align.roles.backbone import ACTOR, REWARD, Backbone
from align.roles.critic import score_from
from align.roles.folder import CAUSAL, Folder
from align.roles.group import Group
from align.roles.loading import for_task, settings_difference, take_weights
from align.roles.roles import Roles
from align.roles.start import Start


class ActorSpec(Protocol):
    """The actor as configuration describes it: it loads itself, and says how it trains."""

    learning_rate: float
    schedule: str
    warmup_steps: int
    zero: Zero | None

    def load(self, context: RunContext) -> Start: ...


@dataclass
class RunContext:
    """Context that all roles of one run have in common."""

    device: torch.device
    dtype: torch.dtype
    """Of frozen weights; weights that train are float32."""
    engine: Callable[..., Any]
    """engine(module, learning_rate or rates by role or None, max_grad_norm, zero) -> TrainEngine"""
    out: Path
    max_grad_norm: float = 1.0
    steps: int | None = None
    """Optimizer steps of the run, where they are known: some methods plan by them."""
    gradient_checkpointing: bool = False
    """Layers of trained models are computed again in the backward pass: less memory, a third more time."""
    tell: Callable[[str], None] = lambda line: None

    @property
    def autocast(self) -> bool:
        return self.dtype == torch.bfloat16


@dataclass
class PlacedBackbone:
    """A backbone that is to get an engine, and the learning rates of the roles that train on it."""

    backbone: Backbone
    zero: Zero | None
    rates: dict[str, float] = field(default_factory=dict)


class Placement:
    """Starts with the actor on its backbone; the other roles join it there or bring their own."""

    def __init__(self, context: RunContext, actor: ActorSpec) -> None:
        self.context = context
        self.spec = actor
        self.actor = actor.load(context)
        self.schedules: dict[str, Schedule] = {}
        self.plans: list[PlacedBackbone] = []
        adapter = "default" if isinstance(self.actor.model, PeftModel) else None
        self.home = self.add(self.actor.model, {ACTOR: adapter}, actor.zero)
        self.trains(ACTOR, self.home, actor)

    def add(
        self, model: PreTrainedModel | PeftModel, adapters: dict[str, str | None], zero: Zero | None
    ) -> PlacedBackbone:
        """A backbone of `model`, with roles by `adapters`."""
        give_kernel(model, self.context.tell)
        plan = PlacedBackbone(Backbone(model, self.context.autocast, adapters), zero)
        self.plans.append(plan)
        return plan

    def trains(self, role: str, plan: PlacedBackbone, spec: Any) -> None:
        """`role` trains on `plan`'s backbone at the rate and schedule of its `spec`."""
        self.schedules[role] = Schedule(spec.learning_rate, spec.schedule, spec.warmup_steps)
        plan.rates[role] = self.schedules[role].rate(0, 1)
        if ratio := getattr(spec, "loraplus_lr_ratio", None):
            plan.backbone.loraplus[role] = ratio

    def why_apart(self, folder: Folder, peft: PeftConfig | None, zero: Zero | None, adapter: str = "auto") -> str:
        """Reason why a role cannot sit on the actor's backbone; '' where it can, as far as its settings tell."""
        for owner, sharding in (("the actor", self.spec.zero), ("it", zero)):
            if sharding is not None and sharding.stage == 3:
                return f"{owner} is sharded at stage 3, which divides the base"
        return why_apart(self.actor, folder, peft, adapter)

    def join_actor(
        self, role: str, folder: Folder, peft: PeftConfig, zero: Zero | None, trained: bool
    ) -> tuple[PlacedBackbone, str, str]:
        """Puts `role` on the actor's base with its own adapter; its plan, what was done, or why it was not.

        One engine trains both roles in one pass, unless either is under DeepSpeed, which would clip them together.
        """
        said, apart = join(self.actor, role, folder, peft, trained)
        if apart:
            return self.home, "", apart
        if not trained or (zero is None and self.home.zero is None):
            self.home.backbone.adapters[role] = role
            return self.home, said, ""
        return self.add(self.actor.model, {role: role}, zero), said, ""

    def place_reward(self, folder: Folder, zero: Zero | None) -> tuple[int, str]:
        """Puts a reward model's adapter and score on the actor's base; its column of Scores.reward_BK, or why not."""
        heads = self.home.backbone.score_heads
        role = f"{REWARD}_{len(heads) + 1}" if heads else REWARD
        if folder.base is None:
            return -1, "it is a whole model, no adapter"
        peft = PeftConfig.from_pretrained(folder.path)
        apart = "it has its own ZeRO settings" if zero is not None else self.why_apart(folder, peft, None)
        if apart:
            return -1, apart
        score = score_from(folder.path)
        if score is None:
            return -1, "its adapter's folder has no score head"
        _, _, apart = self.join_actor(role, folder, peft, None, trained=False)
        if apart:
            return -1, apart
        heads[role] = score
        return len(heads) - 1, ""

    def roles(self, micro_batch_size: int, micro_batch_tokens: int | None = None) -> Roles:
        """The roles under their engines."""
        groups = []
        for plan in self.plans:
            module = plan.backbone.to(self.context.device).eval()
            use_fast_loras(module.model)
            if self.context.gradient_checkpointing and plan.rates:
                recompute_layers(module.model)
            bound = self.context.max_grad_norm if plan.rates else 0.0
            engine = self.context.engine(module, plan.rates or None, bound, plan.zero)
            groups.append(Group(module, engine, tuple(plan.rates)))
        return Roles(groups, micro_batch_size, micro_batch_tokens, self.schedules)


def why_apart(actor: Start, folder: Folder, peft: PeftConfig | None, adapter: str = "auto") -> str:
    """Reason why a role that starts from `folder` with method `peft` cannot sit on the actor's base; '' if it can."""
    mine = actor.model.peft_config["default"] if isinstance(actor.model, PeftModel) else None
    same = actor.quantized_from and folder.base is None and wanted(peft) == wanted(mine)
    return why_settings_apart(mine, actor.quantized_from if same else actor.base, folder, peft, adapter)


def why_settings_apart(
    mine: PeftConfig | None, base: str, folder: Folder, peft: PeftConfig | None, adapter: str = "auto"
) -> str:
    """`why_apart` by the actor's method and base alone, which are known before it loads."""
    if mine is None:
        return "the actor trains all of its weights"
    if peft is None:
        return "it trains all its weights"
    if peft.peft_type != mine.peft_type:
        return f"PEFT takes one method a model, and the actor's is {mine.peft_type.value}"
    if changes_the_base(peft):
        return f"init_lora_weights={peft.init_lora_weights} takes a part out of the base for each adapter"
    if mine.is_prompt_learning:
        return f"{mine.peft_type.value} has one prompt a model"
    if hooks_of(mine).one_trained:
        return f"PEFT trains one {mine.peft_type.value} adapter a model"
    if folder.base and adapter == "new":
        return "its earlier adapter is merged into its own base"
    if real_path(folder.base or folder.path) != real_path(base):
        return f"it stands on {folder.base or folder.path}, the actor on {base}"
    return ""


def join(actor: Start, name: str, folder: Folder, peft: PeftConfig, trained: bool) -> tuple[str, str]:
    """Adds adapter `name` to the actor's model, from `folder`: in words what was done, or why it was not.

    An adapter of the same settings is copied; on the plain base a new one is made. Nothing stays behind where
    the settings differ.
    """
    model = actor.model
    add_adapter(model, name, for_task(peft, CAUSAL, actor.base), trained)
    if folder.base is None:
        return f"a new adapter on {actor.base}", ""
    if difference := settings_difference(model.peft_config[name], PeftConfig.from_pretrained(folder.path)):
        with kept_trainable(model):
            model.delete_adapter(name)
        return "", f"its adapter differs: {difference}"
    take_weights(model, folder.path, name)
    return f"the adapter of {folder.path}", ""


def real_path(path: str) -> str:
    """A folder's real place; a hub name as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path
