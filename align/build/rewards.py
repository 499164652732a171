"""Rewards from plugs, with those inside them: checked, and made with their models or without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from align.build.plugs import arguments, made, make, target_of
from align.build.zero import zero_of
from align.config import RewardModelOptions
from align.config.values import Plug, plug_of
from align.errors import AlignError
from align.imports import locate
from align.plan.plan import StagePlan
from align.plan.rewards import BY_NAME, ENSEMBLE, MEMBER, MODEL, check_several, inner_rewards, learned, model_paths
from align.rewards.typed import told_at

if TYPE_CHECKING:
    from align.roles.placement import Placement, RunContext

OF_MODELS = tuple(one.name for one in fields(RewardModelOptions))
"""Settings of an ensemble that are for the reward models which its `path` names."""


def compose_reward(reward: Plug, make_one: Callable[[Plug], Any]) -> Any:
    """A reward with all those inside it, innermost first; `make_one` makes one that holds none."""
    inner = {name: compose_reward(part, make_one) for name, part in inner_rewards(reward).items()}
    with told_at(reward.key):
        return _holding(inner, reward) if inner else make_one(reward)


def _holding(inner: dict[str, Any], reward: Plug) -> Any:
    """A reward of the rewards inside it, by their key below its own."""
    reward = without_models(reward)
    given = arguments(reward, target_of(reward))
    given |= {home: {} for home in BY_NAME if home in given}
    for name, one in inner.items():
        home, _, own = name.partition(".")
        if own:
            given[home][own] = one
        else:
            given[name] = one
    return made(reward, **given)


class Unloaded:
    """A reward model that is not loaded yet."""

    wants: ClassVar[set[str]] = set()

    def __call__(self, *args: Any) -> NoReturn:
        raise AssertionError("a reward model is called before it is loaded")


def check_reward(reward: Plug) -> Any:
    """The reward without its models: functions are imported, terms, weights and words are matched."""

    def make_one(reward: Plug) -> Any:
        return models_as_one(reward, [Unloaded(), Unloaded()]) if learned(reward) else make(reward)

    return compose_reward(reward, make_one)


def check_scoring(reward: Plug, data: Plug, purpose: str, seed: int) -> None:
    """Raise AlignError for a reward that cannot score, as far as is known before its models load.

    Where it goes by columns of the rows, the rows of a stage's data are looked at.
    """
    from align.data.files import unwritten
    from align.rewards.parts import check_rows, reads_rows

    found, source = check_reward(reward), make(data)
    if reads_rows(found) and not unwritten(source):
        split = source.load(purpose, seed)
        check_rows(found, [*split.train, *split.eval, *split.test], reward.key)


def make_reward(
    reward: Plug, stage: StagePlan, inputs: dict[str, str], context: RunContext, tokenizer: Any,
    placement: Placement | None = None,
) -> Any:  # fmt: skip
    """A reward with all those inside it, with their models.

    The terms of one reward score the same rollouts: those of their models that are apart from the actor share a base.
    """
    from align.roles.shared_rewards import SharedRewardModels

    by_base: dict[str, SharedRewardModels] = {}

    def make_one(reward: Plug) -> Any:
        if not learned(reward):
            return make(reward)
        home = reward.key.rpartition(".")[0]
        group = home if home.endswith(".terms") else reward.key
        shared = by_base.setdefault(group, SharedRewardModels(context))
        zero = zero_of(plug_of(reward.get("zero"), f"{reward.key}.zero"), trained=False)
        one = target_of(reward) if reward.target == MODEL else locate(MODEL)
        paths = stage.models_at(reward.key) or model_paths(reward, inputs["reward"])
        check_several(reward, paths)
        normalize, backbone = reward.get("normalize", True), reward.get("backbone", "auto")
        models = [
            one(path, context, tokenizer, normalize, zero, backbone, placement, shared, reward.key) for path in paths
        ]
        return models_as_one(reward, models)

    return compose_reward(reward, make_one)


def models_as_one(reward: Plug, models: list[Any]) -> Any:
    """The reward of a `learned` plug from its models: the only one, or the ensemble of them, by number."""
    if reward.target == MODEL:
        return models[0]
    settings = reward.without(*OF_MODELS, "terms").settings.plain()
    return made(reward, {f"{MEMBER}{i}": one for i, one in enumerate(models, start=1)}, **settings)


def without_models(reward: Plug) -> Plug:
    """An ensemble of `terms` without the settings of models, none of which may be given; another reward as it is."""
    if reward.target != ENSEMBLE:
        return reward
    usual = vars(RewardModelOptions())
    for name in OF_MODELS:
        value = plug_of(reward.get(name), f"{reward.key}.{name}")
        if name in reward and value != usual[name]:
            first = next(iter(reward.get("terms")))
            raise AlignError(
                f"{reward.key}.{name}: it is for the reward models of {reward.key}.path, and {reward.key}.terms names "
                f"others\n  use {reward.key}.terms.{first}.{name}, or leave the terms out"
            )
    return reward.without(*OF_MODELS)
