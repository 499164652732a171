"""The stages `dpo` and `kto`: their settings and their specs."""

from __future__ import annotations

from align.config.choices import DPO_LOSSES, FOR_LORA, KTO_LOSSES
from align.config.fields import choice, number, open_settings, section
from align.config.values import Plug, Settings
from align.plan.plan import StagePlan
from align.plan.spec import JUDGED, POLICY, Made, Need, StageSpec


@section("dpo")
class DirectOptions:
    """Options that dpo and kto have in common."""

    data: Plug | None = None
    """Source of the completions: data@dpo.data=preferences."""
    beta: float = number(0.1, above=0)
    """Price of leaving the reference: the larger, the nearer the policy stays."""
    learning_rate: float | str = number("lora:1e-5", above=0, high=1, prefix=FOR_LORA, follows="actor.learning_rate")
    """As `sft.learning_rate`, by the actor's method."""
    epochs: float = number(1.0, above=0)
    """Passes over the data."""
    batch_size: int = number(16, low=1)
    """Rows an optimizer step: pairs of dpo, completions of kto."""
    max_length: int = number(1024, low=2)
    """Tokens of prompt and completion; longer rows are left out, and counted."""
    args: Settings = open_settings()
    """Any other argument of trl.DPOConfig or trl.KTOConfig, such as kto.args.undesirable_weight."""


@section("dpo")
class DPOOptions(DirectOptions):
    loss: str | tuple[str, ...] = choice("sigmoid", *DPO_LOSSES, listed=True)
    """trl.DPOConfig's loss_type: sigmoid, ipo, hinge, robust … or a list of them."""


@section("kto")
class KTOOptions(DirectOptions):
    """Options of kto: completions marked good or bad (data@kto.data=unpaired), or on pairs, each side on its own."""

    batch_size: int = number(16, low=2)
    """Rows an optimizer step; KTO compares rows of one batch."""
    loss: str = choice("kto", *KTO_LOSSES)
    """trl.KTOConfig's loss_type: kto or apo_zero_unpaired."""


def needs(stage: StagePlan, before: tuple[Made, ...]) -> tuple[Need, ...]:
    actor, reference = stage.sections.actor.options.path, stage.sections.reference.options.path
    return (
        Need("actor", POLICY, "actor.path", actor),
        Need("reference", POLICY, "reference.path", reference, named_only=True),
    )


DPO = StageSpec(
    name="dpo",
    help="a policy straight from preference pairs, by TRL's DPO trainer",
    options=DPOOptions,
    build="align.stages.direct.stage.build",
    makes=POLICY,
    needs=needs,
    reads=("actor", "reference"),
    after=("pretrain", "sft", "rm", "preferences"),
    merit="eval_accuracy",
    more_is_better=True,
    evaluated=JUDGED,
)
KTO = StageSpec(
    name="kto",
    help="a policy from completions marked good or bad, by TRL's KTO trainer",
    options=KTOOptions,
    build="align.stages.direct.stage.build",
    makes=POLICY,
    needs=needs,
    reads=("actor", "reference"),
    after=("pretrain", "sft", "rm", "preferences"),
    merit="eval_loss",
    evaluated=JUDGED,
)
