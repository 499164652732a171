"""A first check of data and reward functions, before torch is imported: the usual mistakes are known in a second."""

from __future__ import annotations

from align.build.plugs import make, refusal, sources
from align.config import RewardFunctionOptions
from align.config.values import Plug
from align.data.source import look
from align.errors import AlignError
from align.imports import resolve
from align.plan.checks import rewards_of
from align.plan.plan import RunPlan, StagePlan
from align.plan.rewards import every_reward


def check_first(plan: RunPlan) -> None:
    """Raise AlignError for paths, columns and first rows of the stages' data, and for functions that are not there."""
    for stage in plan.stages:
        data = getattr(stage.options, "data", None)
        if data is not None:
            found = (sources if hasattr(stage.options, "parallel_adapters") else make)(data)
            for one in found if isinstance(found, list) else [found]:
                look(one, stage.spec.name)
        elif not hasattr(stage.options, "data") and "ppo" not in stage.before:
            look_at_prompts(stage)
    for stage in plan.stages:
        for reward in rewards_of(stage):
            for one in every_reward(reward):
                check_function(one)


def look_at_prompts(stage: StagePlan) -> None:
    """Look at the prompts of ppo, which an evaluation takes where no stage of the run has them."""
    prompts = stage.sections.options_of("ppo")
    if prompts is not None and prompts.data is not None and getattr(stage.options, "judge", None) is not None:
        try:
            look(make(prompts.data), "ppo")
        except AlignError as error:
            raise AlignError(f"{error}\n  {stage.name} takes its prompts from there") from error


def check_function(reward: Plug) -> None:
    """Raise AlignError where a reward's function cannot be imported."""
    name = reward.get("fn")
    if reward.target == RewardFunctionOptions.TARGET and isinstance(name, str):
        try:
            resolve(name)
        except ValueError as error:
            raise refusal(reward, error) from error
