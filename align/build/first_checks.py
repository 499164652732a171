"""A first check of data and reward functions, before torch is imported: the usual mistakes are known in a second."""

from __future__ import annotations

from align.build.plugs import make, refusal, sources
from align.config import RewardFunctionOptions
from align.config.values import Plug
from align.data.source import look
from align.imports import resolve
from align.plan.checks import rewards_of
from align.plan.plan import RunPlan
from align.plan.rewards import every_reward


def check_first(plan: RunPlan) -> None:
    """Raise AlignError for paths, columns and first rows of the stages' data, and for functions that are not there."""
    for stage in plan.stages:
        data = getattr(stage.options, "data", None)
        if data is not None:
            found = (sources if hasattr(stage.options, "parallel_adapters") else make)(data)
            for one in found if isinstance(found, list) else [found]:
                look(one, stage.spec.name)
    for stage in plan.stages:
        for reward in rewards_of(stage):
            for one in every_reward(reward):
                check_function(one)


def check_function(reward: Plug) -> None:
    """Raise AlignError where a reward's function cannot be imported."""
    name = reward.get("fn")
    if reward.target == RewardFunctionOptions.TARGET and isinstance(name, str):
        try:
            resolve(name)
        except ValueError as error:
            raise refusal(reward, error) from error
