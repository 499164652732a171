"""Checks of a configuration beyond its single settings, without torch and without a model."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

from align.config.choices import SFT_LOSSES
from align.config.fields import Allowed, checked_value, shown
from align.config.values import Plug, Settings
from align.errors import AlignError, AlignWarning
from align.plan.plan import RunPlan, StagePlan
from align.plan.rewards import ENSEMBLE, every_reward, learned
from align.plan.spec import AUTO


def check_plan(plan: RunPlan) -> None:
    """Raise AlignError for stages that do not fit together; warn of settings that nothing reads."""
    for stage in plan.stages:
        args = getattr(stage.options, "args", Settings())
        if stage.spec.name in ("sft", "best_of"):
            key = f"{stage.spec.name}.args.loss_type"
            checked_value(args.get("loss_type", SFT_LOSSES[0]), key, (str,), Allowed(SFT_LOSSES))
        if stage.spec.name == "evaluate":
            warn_of_idle(stage.options)
        for reward in rewards_of(stage):
            check_members(reward, plan)


def rewards_of(stage: StagePlan) -> list[Plug]:
    """The reward of a stage, the judge of its own, and that of its watch."""
    judge = getattr(stage.options, "judge", None)
    watched = stage.sections.watch.options.judge if stage.sections.watch else None
    return [one for one in (stage.sections.reward, judge, watched) if isinstance(one, Plug)]


def check_members(reward: Plug, plan: RunPlan) -> None:
    """Raise AlignError for an ensemble of this run's reward models where the run makes one alone."""
    trained = plan.kinds("rm")
    for one in every_reward(reward):
        if trained and one.target == ENSEMBLE and learned(one) and one.get("path") == AUTO:
            members = trained[-1].options.members
            if members < 2:
                raise AlignError(
                    f"{one.key} is an ensemble of this run's reward models, and rm.members={members}\n"
                    f"  use rm.members=3, or {one.key}.path=[FOLDER,FOLDER]"
                )


def warn_of_idle(evaluate: Any) -> None:
    """Warn of settings of the evaluation that are about completions which no setting asks for."""
    usual = {one.name: one.default for one in fields(evaluate)}
    idle = [name for name in ("metrics", "pattern", "schema") if getattr(evaluate, name) != usual[name]]
    if idle and not evaluate.shots:
        idle = " and ".join(f"evaluate.{name}={shown(getattr(evaluate, name))}" for name in idle)
        warnings.warn(
            f"{idle}: about completions of held-out questions, and evaluate.shots=[] has none; use evaluate.shots=[0]",
            AlignWarning,
            stacklevel=2,
        )
