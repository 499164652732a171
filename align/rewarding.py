"""Rewards from nodes of a configuration, with those inside them: looked at, and made, with their models or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from omegaconf import DictConfig, OmegaConf

from align.checks import check_choice
from align.config.choices import REWARD_BACKBONES
from align.errors import AlignError
from align.members import ENSEMBLE, MODEL_REWARD, check_several, learned, model_paths, models_as_one, without_models
from align.nodes import call, check_given, locate, made, target_of
from align.rewards.typed import chosen_at, told_at

if TYPE_CHECKING:
    from align.build import Build
    from align.roles.placement import Seating, Setting

REWARDS_BY_NAME, REWARDS_ALONE = ("terms", "cases"), ("score", "condition")
"""Where a reward holds others, or one."""


def reward_nodes(node: DictConfig, key: str = "reward") -> Iterator[tuple[str, DictConfig]]:
    """A reward and those inside it, each with its key."""
    yield key, node
    for name, inner in inner_rewards(node, key).items():
        yield from reward_nodes(inner, f"{key}.{name}")


def inner_rewards(node: DictConfig, key: str) -> dict[str, DictConfig]:
    """The rewards inside a reward, by their key below its own."""
    found = {}
    for home in REWARDS_BY_NAME:
        named = node.get(home)
        for name, inner in named.items() if isinstance(named, DictConfig) else ():
            found[f"{home}.{name}"] = _reward_node(inner, f"{key}.{home}.{name}")
    for name in REWARDS_ALONE:
        if isinstance(node.get(name), DictConfig):
            found[name] = _reward_node(node[name], f"{key}.{name}")
    return found


def _reward_node(node: Any, key: str) -> DictConfig:
    if not isinstance(node, DictConfig):
        raise AlignError(f"{key}={node}: write {chosen_at(key)}={node}")
    if "_target_" not in node:
        raise AlignError(f"{key} has settings, but no reward that they are of\n  write {chosen_at(key)}=fn")
    return node


def compose_reward(node: DictConfig, key: str, make: Callable[[DictConfig, str], Any]) -> Any:
    """A reward with all those inside it, innermost first; `make` makes one that holds none, from node and key."""
    inner = {name: compose_reward(part, f"{key}.{name}", make) for name, part in inner_rewards(node, key).items()}
    with told_at(key):
        return _holding(inner, node, key) if inner else make(node, key)


def _holding(inner: dict[str, Any], node: DictConfig, key: str) -> Any:
    """A reward of the rewards inside it, by their key below its own."""
    node = without_models(node, key)
    arguments = OmegaConf.to_container(node, resolve=True)
    del arguments["_target_"]
    check_given(node, list(arguments), key)
    arguments |= {home: {} for home in REWARDS_BY_NAME if home in arguments}
    for name, reward in inner.items():
        home, _, own = name.partition(".")
        if own:
            arguments[home][own] = reward
        else:
            arguments[name] = reward
    return made(node, key, **arguments)


class Unloaded:
    """Stands for a reward model until it is loaded."""

    wants: ClassVar[set[str]] = set()

    def __call__(self, *args: Any) -> NoReturn:
        raise AssertionError("a reward model is asked before it is loaded")


def check_reward(node: DictConfig, key: str) -> Any:
    """The reward without its models: functions are imported, terms, weights and words are matched."""

    def make(node: DictConfig, key: str) -> Any:
        if not learned(node):
            return call(node, key)
        check_choice(f"{key}.backbone", node.backbone, REWARD_BACKBONES)
        return models_as_one(node, key, [Unloaded(), Unloaded()])

    return compose_reward(node, key, make)


def check_scoring(node: DictConfig, key: str, data: DictConfig, purpose: str, seed: int) -> None:
    """A reward as far as it can be known before its models load; where it goes by what stands in rows, with those of
    a stage's data."""
    from align.rewards.parts import check_rows, reads_rows

    reward = check_reward(node, key)
    if reads_rows(reward):
        split = call(data, f"{purpose}.data").load(purpose, seed)
        check_rows(reward, [*split.train, *split.eval, *split.test], key)


def check_members(node: DictConfig, key: str, members: int) -> None:
    """An ensemble of this run's reward models finds several of them."""
    for where, one in reward_nodes(node, key):
        if one._target_ == ENSEMBLE and learned(one) and one.path == "auto" and members < 2:
            raise AlignError(
                f"{where} is an ensemble of this run's reward models, and rm.members={members}\n"
                f"  write rm.members=3, or {where}.path=[FOLDER,FOLDER]"
            )


def make_reward(
    build: Build, node: DictConfig, inputs: dict[str, str], setting: Setting, tokenizer: Any,
    seats: Seating | None = None, key: str = "reward",
) -> Any:  # fmt: skip
    """A reward with all those inside it; learned models with what they need to load.

    The terms of one reward are asked about the same rollouts: their models apart from the actor share a bench.
    """
    from align.roles.shared_rewards import Bench

    benches: dict[str, Bench] = {}

    def make(node: DictConfig, key: str) -> Any:
        if not learned(node):
            return call(node, key)
        home = key.rpartition(".")[0]
        bench = benches.setdefault(home if home.endswith(".terms") else key, Bench(setting))
        zero = build.zero(node.zero, f"{key}.zero", trained=False) if "zero" in node else None
        one = target_of(node, key) if node._target_ == MODEL_REWARD else locate(MODEL_REWARD)
        paths = build.reward_paths.get(key) or model_paths(node, inputs["reward"])
        check_several(node, key, paths)
        models = [one(p, setting, tokenizer, node.normalize, zero, node.backbone, seats, bench, key) for p in paths]
        return models_as_one(node, key, models)

    return compose_reward(node, key, make)
