"""A first look at data and reward functions, before torch is imported: what is told most often is told in a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from align.checks import absent
from align.config import RewardFunction
from align.data.source import look
from align.imports import resolve
from align.nodes import call, refusal, sources
from align.rewarding import reward_nodes

if TYPE_CHECKING:
    from align.build import Build


def first_look(build: Build) -> None:
    """Raises AlignError for paths, columns and first rows of the stages' data, and for functions that are not there."""
    for stage in build.stages:
        node = build.cfg[stage].get("data")
        if not absent(node):
            found = (sources if stage in ("sft", "best_of") else call)(node, f"{stage}.data")
            for one in found if isinstance(found, list) else [found]:
                look(one, stage)
    for key, node in build.rewards().items():
        if key != "reward" or {"ppo", "evaluate"} & set(build.stages):
            for name, one in reward_nodes(node, key):
                _look_for_function(one, name)


def _look_for_function(node: DictConfig, key: str) -> None:
    if node._target_ == RewardFunction._target_ and isinstance(node.fn, str):
        try:
            resolve(node.fn)
        except ValueError as error:
            raise refusal(node, error, key) from error
