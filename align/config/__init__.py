"""Settings of align as frozen dataclasses: a default, its constraint, unit and help stand here and nowhere else.

Settings of a stage stand beside its spec. No torch, no Hydra: the command line makes Hydra's schemas of these classes.
"""

from align.config.data import FileDataOptions, MixtureOptions, SampledOptions
from align.config.rewards import (
    RewardByColumnOptions,
    RewardEnsembleOptions,
    RewardFormatOptions,
    RewardFunctionOptions,
    RewardGateOptions,
    RewardHTTPOptions,
    RewardJSONOptions,
    RewardLLMJudgeOptions,
    RewardModelOptions,
    RewardOverlongOptions,
    RewardRepetitionOptions,
    RewardSumOptions,
)
from align.config.roles import ActorOptions, CriticOptions, ReferenceOptions, ZeroOptions
from align.config.roles import Zero as Zero
from align.config.rollout import RolloutOptions, TrackerOptions, WatchOptions
from align.config.run import RunOptions as RunOptions


def none() -> None:
    """Stand for the choice `none` of a group: `critic=none`, `peft@…=none`, `watch=none`."""


SECTIONS = {
    "data": FileDataOptions, "sampled": SampledOptions, "mixture": MixtureOptions,
    "actor": ActorOptions, "critic": CriticOptions, "reference": ReferenceOptions, "zero": ZeroOptions,
    "reward_model": RewardModelOptions, "reward_fn": RewardFunctionOptions, "reward_sum": RewardSumOptions,
    "reward_http": RewardHTTPOptions, "reward_llm_judge": RewardLLMJudgeOptions,
    "reward_by_column": RewardByColumnOptions, "reward_gate": RewardGateOptions,
    "reward_ensemble": RewardEnsembleOptions, "reward_format": RewardFormatOptions, "reward_json": RewardJSONOptions,
    "reward_overlong": RewardOverlongOptions, "reward_repetition": RewardRepetitionOptions,
    "rollout": RolloutOptions, "watch": WatchOptions, "tracker": TrackerOptions,
}  # fmt: skip
"""Sections by the name of their schema in `conf/`."""


def section_of(target: str | None) -> type | None:
    """The section whose class is at a dotted path; None for a class of others."""
    return next((cls for cls in SECTIONS.values() if cls.TARGET == target), None)
