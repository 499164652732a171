"""The stage `preferences`: its settings and its spec."""

from __future__ import annotations

from align.config.fields import number, section
from align.config.values import Plug
from align.plan.plan import StagePlan
from align.plan.rewards import takes_this_runs_model
from align.plan.spec import POLICY, REWARD_MODEL, SAMPLES, Made, Need, StageSpec


@section("preferences")
class PreferencesOptions:
    data: Plug | None = None
    """Source of the prompts: data@preferences.data=prompts."""
    judge: Plug | None = None
    """The reward that ranks the completions: reward@preferences.judge=fn preferences.judge.fn=my_rewards.brevity; with
    model, this run's reward model unless a path is given."""
    policies: str | tuple[str, ...] = "auto"
    """Policies that write the completions: a folder or a list of folders, against each other; auto: this run's newest
    policy, else `model`."""
    samples: int = number(4, low=1)
    """Completions of each policy for a prompt, at rollout.temperature, up to rollout.max_new_tokens."""
    prompts: int | None = number(None, low=1)
    """The most prompts, from all over the data; unset: all."""
    max_prompt_tokens: int | str = number("auto", low=1, words=("auto",))
    """As `ppo.max_prompt_tokens`."""
    resume: str | None = None
    """The folder of this stage in a run that was stopped, such as runs/NAME/latest/preferences: the completions
    that were judged there are taken over."""


def needs(stage: StagePlan, before: tuple[Made, ...]) -> tuple[Need, ...]:
    """The policies that are named, else this run's newest; the reward model of this run where the judge is that."""
    named = stage.options.policies
    named = (named,) if isinstance(named, str) else named
    if named == ("auto",):
        found = [Need("actor", POLICY, "actor.path")]
    else:
        found = [Need(f"policy_{i}", POLICY, "preferences.policies", path) for i, path in enumerate(named, start=1)]
    if takes_this_runs_model(stage.options.judge):
        found.append(Need("reward", REWARD_MODEL, "preferences.judge.path", model=False))
    return tuple(found)


PREFERENCES = StageSpec(
    name="preferences",
    help="completions of policies, ranked by a judge: data for rm, dpo, kto and best_of",
    options=PreferencesOptions,
    build="align.stages.preferences.stage.build",
    makes=SAMPLES,
    needs=needs,
    reads=("rollout",),
    after=("pretrain", "sft", "rm"),
)
