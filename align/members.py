"""The reward models that one node of a configuration names: one, or several as an ensemble. No torch at import."""

from __future__ import annotations

import glob
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align import config
from align.checks import absent
from align.errors import AlignError
from align.nodes import made

MODEL_REWARD, ENSEMBLE = config.RewardModel._target_, config.RewardEnsemble._target_
OF_MODELS = tuple(f.name for f in fields(config.RewardModel) if f.name != "_target_")
"""What an ensemble is given for the reward models that its `path` names."""
MEMBER = "member_"
"""Before a reward model's number, in logs and in the folder of a stage `rm` that made several."""


def learned(node: DictConfig) -> bool:
    """A reward model, or several that an ensemble names by `path`."""
    return node._target_ == MODEL_REWARD or (node._target_ == ENSEMBLE and not node.get("terms"))


def model_paths(node: DictConfig, made: str | None = None) -> list[str]:
    """Folders of the reward models of a `learned` node, one at least; `made` is what `path=auto` stands for."""
    path = made if node.path == "auto" else node.path
    if node._target_ == MODEL_REWARD:
        return [str(path)]
    found = [str(one) for one in path] if OmegaConf.is_list(path) else members_at(str(path))
    return found or [str(path)]


def members_at(path: str) -> list[str]:
    """The reward models that one stage left in the folder `path`, else the folders that `path` names as a glob."""
    place = Path(path).expanduser()
    inside = sorted(place.glob(f"{MEMBER}*"), key=lambda one: (len(one.name), one.name))
    return [str(one) for one in inside] or sorted(glob.glob(str(place)))


def check_several(node: DictConfig, key: str, paths: list[str]) -> None:
    """An ensemble has several reward models."""
    if node._target_ == ENSEMBLE and len(paths) < 2:
        raise AlignError(
            f"{key}.path={node.path}: an ensemble is of two reward models or more, and there is one at most\n"
            f"  write {key}.path=[FOLDER,FOLDER], or the folder of a stage that was run with rm.members=3"
        )
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise AlignError(
            f"{key}.path={node.path}: {twice[0]} is there twice, and agrees with itself\n"
            f"  write {key}.path=[FOLDER,FOLDER], each another one"
        )


def models_as_one(node: DictConfig, key: str, models: list[Any]) -> Any:
    """The reward of a `learned` node from its models: the only one, or the ensemble of them, by number."""
    if node._target_ == MODEL_REWARD:
        return models[0]
    settings = {name: node[name] for name in node if name not in (*OF_MODELS, "terms", "_target_")}
    return made(node, key, {f"{MEMBER}{i}": one for i, one in enumerate(models, start=1)}, **settings)


def without_models(node: DictConfig, key: str) -> DictConfig:
    """An ensemble of `terms` without the settings of models; one that was given is refused. Any other node as it is."""
    if node._target_ != ENSEMBLE:
        return node
    usual = vars(config.RewardModel())
    for name in OF_MODELS:
        if name in node and (node[name] != usual[name] if name != "zero" else not absent(node.zero)):
            raise AlignError(
                f"{key}.{name} is for the reward models of {key}.path, and {key}.terms names others\n"
                f"  write it there, as {key}.terms.{next(iter(node.terms))}.{name}, or leave the terms out"
            )
    return OmegaConf.masked_copy(node, [str(name) for name in node if name not in OF_MODELS])
