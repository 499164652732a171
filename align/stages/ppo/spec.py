"""The stage `ppo`: its spec; its settings are the loop's."""

from __future__ import annotations

from align.plan.plan import StagePlan
from align.plan.rewards import named_models, takes_this_runs_model
from align.plan.spec import ALWAYS, POLICY, REWARD_MODEL, Made, Need, StageSpec
from align.ppo.options import PPOOptions


def needs(stage: StagePlan, before: tuple[Made, ...]) -> tuple[Need, ...]:
    """Actor, a named reference, the critic's start, and the reward models: this run's as `reward`, others by number."""
    sections = stage.sections
    found = [
        Need("actor", POLICY, "actor.path", sections.actor.options.path),
        Need("reference", POLICY, "reference.path", sections.reference.options.path, named_only=True),
    ]
    if sections.critic is not None:
        found.append(Need("critic", REWARD_MODEL, "critic.path", sections.critic.options.path, like="actor"))
    own, named = takes_this_runs_model(sections.reward), named_models(stage.models, "reward")
    if own:
        found.append(Need("reward", REWARD_MODEL, f"{own}.path", model=False))
    for number, (key, path) in enumerate(named, start=2 if own else 1):
        found.append(Need("reward" if number == 1 else f"reward_{number}", REWARD_MODEL, f"{key}.path", path))
    return tuple(found)


PPO = StageSpec(
    name="ppo",
    help="proximal policy optimisation against a reward, with or without a critic",
    options=PPOOptions,
    build="align.build.ppo.build",
    makes=POLICY,
    needs=needs,
    reads=("actor", "critic", "reference", "reward", "rollout", "advantage", "policy_loss", "watch"),
    after=("pretrain", "sft", "rm", "preferences"),
    merit="best.objective",
    more_is_better=True,
    evaluated=ALWAYS,
)
