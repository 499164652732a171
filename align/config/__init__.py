"""Every option of align's own, as dataclasses without torch: a default stands here and nowhere else.

`cli` registers them with Hydra's ConfigStore under `schema`; the files of `conf/` build on them.
A node with a `_target_` is replaced whole by naming another class. `auto` is resolved when a stage
starts, from what this run has made so far.
"""

from align.config.data import FileData, HelpDesk, Mixture, Sampled, ShortTexts
from align.config.plugs import Rollout, Tracker, Watch
from align.config.rewards import (
    RewardByColumn,
    RewardEnsemble,
    RewardFormat,
    RewardFunction,
    RewardGate,
    RewardHTTP,
    RewardJSON,
    RewardLLMJudge,
    RewardModel,
    RewardOverlong,
    RewardRepetition,
    RewardSum,
)
from align.config.roles import Actor, Critic, Reference, Zero
from align.config.stages import DPO, KTO, PPO, RM, SFT, BestOf, Evaluate, Preferences, Pretrain


def none() -> None:
    """What `critic=none`, `peft@…=none`, `zero@…=none`, `watch=none` and `tracker=none` stand for."""


SCHEMAS = {
    "data": FileData, "help_desk": HelpDesk, "sampled": Sampled, "mixture": Mixture, "short_texts": ShortTexts,
    "pretrain": Pretrain, "sft": SFT, "rm": RM,
    "preferences": Preferences, "best_of": BestOf, "dpo": DPO, "kto": KTO, "ppo": PPO, "evaluate": Evaluate,
    "actor": Actor, "critic": Critic, "reference": Reference, "zero": Zero,
    "reward_model": RewardModel, "reward_fn": RewardFunction, "reward_sum": RewardSum,
    "reward_http": RewardHTTP, "reward_llm_judge": RewardLLMJudge, "reward_by_column": RewardByColumn,
    "reward_gate": RewardGate, "reward_ensemble": RewardEnsemble,
    "reward_format": RewardFormat, "reward_json": RewardJSON, "reward_overlong": RewardOverlong,
    "reward_repetition": RewardRepetition,
    "rollout": Rollout, "watch": Watch, "tracker": Tracker,
}  # fmt: skip
