"""Rewards as they are configured, with those inside them, and the reward models that they name. No torch."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from align.config import RewardEnsembleOptions, RewardModelOptions
from align.config.values import Plug, Settings, Value
from align.errors import AlignError
from align.plan.spec import AUTO

MODEL, ENSEMBLE = RewardModelOptions.TARGET, RewardEnsembleOptions.TARGET
BY_NAME, ALONE = ("terms", "cases"), ("score", "condition")
"""Settings in which a reward holds others by name, or one."""
MEMBER = "member_"
"""Before a reward model's number, in logs and in the folder of a stage `rm` that made several."""
Models = tuple[tuple[str, tuple[str, ...]], ...]


def every_reward(reward: Plug | None) -> Iterator[Plug]:
    """A reward and those inside it, each under its own key."""
    if reward is not None:
        yield reward
        for inner in inner_rewards(reward).values():
            yield from every_reward(inner)


def inner_rewards(reward: Plug) -> dict[str, Plug]:
    """The rewards inside a reward, by their key below its own. Raises AlignError for what is no reward."""
    found: dict[str, Plug] = {}
    for home in BY_NAME:
        named = reward.get(home)
        for name, inner in named.items() if isinstance(named, Settings) else ():
            found[f"{home}.{name}"] = _inner(inner, f"{reward.key}.{home}.{name}")
    for name in ALONE:
        if isinstance(reward.get(name), Plug | Settings):
            found[name] = _inner(reward.get(name), f"{reward.key}.{name}")
    return found


def _inner(inner: Value, key: str) -> Plug:
    if isinstance(inner, Plug):
        return inner
    if isinstance(inner, Settings):
        raise AlignError(f"{key} has settings and no reward\n  use +reward@{key}=fn")
    raise AlignError(f"{key}={inner}: no reward\n  use +reward@{key}={inner}")


def learned(reward: Plug) -> bool:
    """Return True where it is a reward model, or several that an ensemble names by `path`."""
    return reward.target == MODEL or (reward.target == ENSEMBLE and not reward.get("terms"))


def takes_this_runs_model(reward: Plug | None) -> str:
    """The key of the first reward in `reward` that is the reward model of this run; '' where none is."""
    return next((one.key for one in every_reward(reward) if learned(one) and one.get("path") == AUTO), "")


def model_paths(reward: Plug, made: str | None = None) -> list[str]:
    """Folders of the models of a `learned` reward, one at least; `made` stands in for `path=auto`."""
    path = made if reward.get("path") == AUTO else reward.get("path")
    if reward.target == MODEL:
        return [str(path)]
    found = [str(one) for one in path] if isinstance(path, tuple) else members_at(str(path))
    return found or [str(path)]


def members_at(path: str) -> list[str]:
    """The reward models that one stage left in the folder `path`, else the folders that `path` names as a glob."""
    folder = Path(path).expanduser()
    inside = sorted(folder.glob(f"{MEMBER}*"), key=lambda one: (len(one.name), one.name))
    return [str(one) for one in inside] or sorted(glob.glob(str(folder)))


def models_of(rewards: list[Plug | None]) -> Models:
    """The reward models that the rewards name by path, by key, as real paths."""
    named = [one for reward in rewards for one in every_reward(reward) if learned(one) and one.get("path") != AUTO]
    return tuple((one.key, tuple(real(path) for path in model_paths(one))) for one in named)


def named_models(models: Models, home: str) -> list[tuple[str, str]]:
    """Key and folder of each different model that the reward at `home`, or one inside it, names."""
    pairs = [(key, path) for key, paths in models if f"{key}.".startswith(f"{home}.") for path in paths]
    return list({path: (key, path) for key, path in reversed(pairs)}.values())[::-1]


def check_several(reward: Plug, paths: list[str] | tuple[str, ...]) -> None:
    """Raise AlignError for an ensemble of fewer than two reward models, or of one twice."""
    if reward.target == ENSEMBLE and len(paths) < 2:
        raise AlignError(
            f"{reward.key}.path={reward.get('path')}: an ensemble is of two reward models or more, and there is one at "
            f"most\n  use {reward.key}.path=[FOLDER,FOLDER], or the folder of a stage that was run with rm.members=3"
        )
    if twice := [path for path in paths if list(paths).count(path) > 1]:
        raise AlignError(
            f"{reward.key}.path: {twice[0]} is there twice, and agrees with itself\n"
            f"  use {reward.key}.path=[FOLDER,FOLDER], each another one"
        )


def real(path: str) -> str:
    """The absolute path of a folder that exists; a hub name as it is."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path
