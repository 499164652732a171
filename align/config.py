"""Every option of align's own, as dataclasses without torch: a default stands here and nowhere else.

`cli` registers them with Hydra's ConfigStore under `schema`; the files of `conf/` build on them.
A node with a `_target_` is replaced whole by naming another class. `auto` is resolved when a stage
starts, from what this run has made so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig


def none() -> None:
    """What `critic=none`, `peft@…=none`, `zero@…=none` and `tracker=none` stand for."""


def _open() -> DictConfig:
    """A node that takes any key without `+`: arguments of other libraries and of users' functions."""
    return DictConfig({}, flags={"struct": False})


# -- data ---------------------------------------------------------------------------------------


@dataclass
class FileData:
    _target_: str = "align.data.files.FileData"
    format: str = MISSING
    """Meaning of a row: text, prompts, prompt_completion, conversational, preferences, dialogues."""
    path: str | None = "${data.path}"
    """A json or jsonl file (also .gz), or the name of a data set on the hub."""
    split: str = "train"
    """Split of a data set from the hub."""
    eval_path: str | None = None
    """Held-out rows; unset: a share of `path`."""
    eval_share: float = 0.05
    """Share of rows held out of training, chosen by the hash of the row's prompt."""


@dataclass
class HelpDesk:
    _target_: str = "align.data.help_desk.HelpDesk"
    pairs: int = 4000
    """Preference pairs made for the reward model."""
    demonstrations: int = 1500
    """Answers made for fine-tuning, of mixed quality."""
    documents: int = 6000
    """Documents of the pretraining corpus."""
    noise: float = 0.1
    """Share of preference labels that are turned round."""
    minimal_pairs: float = 0.8
    """Share of pairs that differ in the fact alone."""


# -- stages -------------------------------------------------------------------------------------


@dataclass
class Pretrain:
    _target_: str = "align.stages.pretrain.Pretrain"
    data: Any = None
    steps: int = 300
    batch_size: int = 16
    """Rows of `max_length` tokens a step."""
    max_length: int = 96
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    vocab_size: int = 768
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    """hidden_size / heads is the head size: vLLM on CPU serves 32, 64, 80, 96, 112, 128 …"""
    intermediate_size: int = 384
    max_positions: int = 512


@dataclass
class SFT:
    _target_: str = "align.stages.sft.SFT"
    path: str = "auto"
    """Model to start from, a folder or a hub name; auto: this run's pretrained model, else `model`."""
    adapter: str = "auto"
    """An adapter found at `path`: continue it, start a new one on the merged model, or auto."""
    peft: Any = None
    data: Any = None
    learning_rate: float = 2e-4
    epochs: float = 1.0
    batch_size: int = 16
    """Rows an optimizer step."""
    max_length: int = 1024
    """Tokens of prompt and completion; longer rows are cut."""
    args: dict[str, Any] = field(default_factory=_open)
    """Any other argument of trl.SFTConfig."""


@dataclass
class RM:
    _target_: str = "align.stages.rm.RM"
    path: str = "auto"
    """Model to start from; auto: this run's fine-tuned model, else its pretrained one, else `model`."""
    adapter: str = "auto"
    """As `sft.adapter`."""
    peft: Any = None
    data: Any = None
    learning_rate: float = 1e-4
    epochs: float = 1.0
    batch_size: int = 16
    """Pairs an optimizer step."""
    max_length: int = 1024
    """Tokens of prompt and completion; longer pairs are left out, and counted."""
    norm_samples: int = 256
    """Samples of the starting policy on which the score's mean and deviation are measured."""
    args: dict[str, Any] = field(default_factory=_open)
    """Any other argument of trl.RewardConfig."""


@dataclass
class PPO:
    _target_: str = "align.stages.ppo_stage.PPOStage"
    data: Any = None
    steps: int = 100
    """Rollout batches."""
    batch_size: int = 64
    """Completions a step, over all ranks."""
    minibatches: int = 2
    """Optimizer steps an epoch."""
    micro_batch_size: int = 16
    """Completions in one forward pass; changes time and memory, not the result."""
    epochs: int = 2
    """Passes over each rollout batch."""
    kl_coef: float = 0.05
    """Price of one nat away from the reference, in units of the score."""
    clip: float = 0.2
    """The policy's ratio is clipped to 1 ± clip (Schulman et al. 2017, eq. 7)."""
    value_clip: float = 0.2
    """The value is clipped to ± value_clip around its estimate at rollout."""
    gamma: float = 1.0
    lam: float = 0.95
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm, a role at a time; 0: not at all."""
    score_clip: float | None = None
    """Scores are clipped to ± score_clip."""
    missing_eos_penalty: float | None = None
    """Taken off the score of a completion that did not end by itself."""
    max_prompt_tokens: int = 512
    """Longer prompts are left out, and counted."""
    eval_every: int = 0
    """Steps between scorings of held-out prompts, which choose `best/`; 0: never."""
    eval_prompts: int = 64
    """Held-out prompts scored."""
    save_every: int = 0
    """Steps between checkpoints; 0: only the last policy."""
    show_every: int = 0
    """Steps between prints of three samples; 0: never."""


@dataclass
class Evaluate:
    _target_: str = "align.stages.evaluate.Evaluate"
    samples: int = 256
    """Completions scored, a policy."""
    judge: str | None = None
    """module.function(prompt, completion, finished) -> {"score": …}: a rule that knows the true score."""
    split: str = "test"
    """Held-out rows that decide: test, or eval while settings are chosen (files have one held-out part)."""
    batch_size: int = 128
    """Completions generated at a time."""
    show: int = 3
    """Prompts printed with the answers before and after."""


# -- roles --------------------------------------------------------------------------------------


@dataclass
class Zero:
    _target_: str = "align.config.Zero"
    stage: int = MISSING
    """ZeRO stage: 1 optimizer state, 2 and gradients, 3 and parameters, divided over the ranks."""
    offload: bool = False
    """Keep what is divided in the CPU's memory."""


@dataclass
class Actor:
    _target_: str = "align.roles.specs.Actor"
    path: str = "auto"
    """The policy PPO starts from; auto: this run's fine-tuned model, else its pretrained one, else `model`."""
    adapter: str = "auto"
    """As `sft.adapter`."""
    learning_rate: float = 1e-5
    peft: Any = None
    zero: Any = None


@dataclass
class Critic:
    _target_: str = "align.roles.specs.Critic"
    path: str = "auto"
    """What the critic starts from; auto: this run's reward model, else the actor's start."""
    adapter: str = "auto"
    """As `sft.adapter`."""
    learning_rate: float = "${actor.learning_rate}"  # type: ignore[assignment]
    peft: Any = None
    zero: Any = None


@dataclass
class Reference:
    _target_: str = "align.roles.specs.Reference"
    path: str = "auto"
    """The policy that the KL penalty holds to; auto: the actor at step 0."""
    zero: Any = None


# -- plugs --------------------------------------------------------------------------------------


@dataclass
class RewardModel:
    _target_: str = "align.rewards.model.ModelReward"
    path: str = "auto"
    """A reward model's folder or hub name; auto: this run's reward model."""
    normalize: bool = True
    """Shift and scale scores to mean 0 and deviation 1 on the samples that the model's card.json tells of."""
    zero: Any = None


@dataclass
class RewardFunction:
    _target_: str = "align.rewards.function.FunctionReward"
    fn: str = MISSING
    """module.function with TRL's signature, from an installed package or the folder one stands in."""
    args: dict[str, Any] = field(default_factory=_open)
    """Further keyword arguments of the function."""
    name: str | None = None
    """Name in logs; unset: the function's own."""


@dataclass
class RewardSum:
    _target_: str = "align.rewards.sum.SumReward"
    terms: dict[str, Any] = field(default_factory=_open)
    """Rewards by name: +reward@reward.terms.polite=kind_words"""
    weights: dict[str, float] = field(default_factory=_open)
    """Weight of each term; 1 where none is given."""


@dataclass
class Rollout:
    _target_: str = "align.rollout.auto.choose"
    engine: str = MISSING
    """auto (vLLM where it is installed and serves this actor, else transformers), vllm or hf."""
    temperature: float = 1.0
    max_new_tokens: int = 64
    samples_per_prompt: int = 1
    """Completions of each prompt; a step's batch_size counts completions."""
    batch_size: int = 64
    """Completions written at a time."""
    kv_cache_mib: int = 128
    """Memory of vLLM's key-value cache."""


@dataclass
class Tracker:
    _target_: str = "align.report.tracker.AccelerateTracker"
    name: str = MISSING
    """A tracker that accelerate knows: tensorboard, wandb, mlflow, comet_ml, trackio …"""


SCHEMAS = {
    "data": FileData, "help_desk": HelpDesk,
    "pretrain": Pretrain, "sft": SFT, "rm": RM, "ppo": PPO, "evaluate": Evaluate,
    "actor": Actor, "critic": Critic, "reference": Reference, "zero": Zero,
    "reward_model": RewardModel, "reward_fn": RewardFunction, "reward_sum": RewardSum,
    "rollout": Rollout, "tracker": Tracker,
}  # fmt: skip
