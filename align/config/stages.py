"""Options of the stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from align.config.open_node import open_node


@dataclass
class Pretrain:
    _target_: str = "align.stages.pretrain.Pretrain"
    data: Any = None
    """Where the corpus comes from: data@pretrain.data=text."""
    steps: int = 300
    """Optimizer steps."""
    batch_size: int = 16
    """Rows of `max_length` tokens a step."""
    max_length: int = 96
    """Tokens of a row."""
    learning_rate: float = 3e-3
    """Peak of AdamW's rate: 5 % warm-up, then a cosine to 0."""
    weight_decay: float = 0.05
    """AdamW's, on all weights."""
    vocab_size: int = 768
    """Tokens of the byte-level BPE, special ones included."""
    hidden_size: int = 128
    """Width of the model."""
    layers: int = 3
    """Number of decoder layers."""
    heads: int = 4
    """hidden_size / heads is the head size: vLLM on CPU serves 32, 64, 80, 96, 112, 128 …"""
    intermediate_size: int = 384
    """Width of the feed-forward part."""
    max_positions: int = 512
    """Longest sequence that the model takes, in tokens."""


@dataclass
class SFT:
    _target_: str = "align.stages.sft.stage.SFT"
    path: str = "auto"
    """Model to start from, a folder or a hub name; auto: this run's pretrained model, else `model`."""
    adapter: str = "auto"
    """An adapter found at `path`: continue it, start a new one on the merged model, or auto."""
    peft: Any = None
    """Which weights train: peft@sft.peft=lora, or none for all."""
    data: Any = None
    """Where demonstrations come from: data@sft.data=prompt_completion; sft.data.path=[a.jsonl,b.jsonl]: one adapter
    each, as `parallel_adapters` has it."""
    parallel_adapters: int | None = None
    """Adapters (LoRA, houlsby, pfeiffer, parallel) trained at once on one frozen base, a pass for the rows of all: each
    becomes what a run of its own makes, in sft/adapter_0, sft/adapter_1, …; the best on held-out rows is the stage's
    result. By itself, parallel_adapters=4 takes `seed` and the three after it; unset: as many as `learning_rate` or
    `data.path` list, else 1. With dropout each draws other masks than alone."""
    learning_rate: Any = "lora:2e-4"
    """Peak rate: 5 % warm-up, then a cosine to 0. `lora:2e-4` is 2e-4 for LoRA and another method's own multiple of it,
    such as a tenth for all weights (align/peft/rates.py). [1e-4,3e-4]: one adapter each, side by
    side, with the same seed."""
    loraplus_lr_ratio: float | None = None
    """LoRA+: LoRA's B learns so many times as fast as its A, whose rate wants to be lower then; the paper takes 16."""
    epochs: float = 1.0
    """Passes over the data."""
    batch_size: int = 16
    """Rows an optimizer step."""
    max_length: int = 1024
    """Tokens of prompt and completion; longer rows are cut."""
    early_stopping: int | None = None
    """Training ends when the held-out loss has not fallen for so many evaluations, one an epoch unless
    `args.eval_strategy` says otherwise; the best of them is the stage's result."""
    args: dict[str, Any] = field(default_factory=open_node)
    """Any other argument of trl.SFTConfig."""


@dataclass
class Preferences:
    _target_: str = "align.stages.preferences.Preferences"
    data: Any = None
    """Where prompts come from: data@preferences.data=prompts."""
    judge: Any = None
    """The reward that ranks the answers: reward@preferences.judge=fn preferences.judge.fn=my_rewards.brevity; with
    model, this run's reward model unless a path is given."""
    policies: Any = "auto"
    """Who answers: a folder or a list of folders, against each other; auto: this run's newest policy, else `model`."""
    samples: int = 4
    """Answers of each policy to a prompt, at rollout.temperature, up to rollout.max_new_tokens."""
    prompts: int | None = None
    """The most prompts, from all over the data; unset: all."""
    max_prompt_tokens: int | str = "auto"
    """As `ppo.max_prompt_tokens`."""
    resume: str | None = None
    """The folder of this stage in a run that was stopped, such as runs/NAME/latest/preferences: what was judged
    there is taken over."""


@dataclass
class BestOf(SFT):
    """As SFT, on the best answer to each prompt."""

    _target_: str = "align.stages.sft.stage.BestOf"
    path: str = "auto"
    """Model to start from; auto: this run's newest policy, else `model`."""
    data: Any = None
    """Where ranked answers come from: data@best_of.data=sampled."""


@dataclass
class RM:
    _target_: str = "align.stages.rm.stage.RM"
    path: str = "auto"
    """Model to start from; auto: this run's fine-tuned model, else its pretrained one, else `model`."""
    adapter: str = "auto"
    """As `sft.adapter`."""
    peft: Any = None
    """As `sft.peft`: peft@rm.peft=lora."""
    data: Any = None
    """Where pairs, rankings or ratings come from: data@rm.data=preferences."""
    loss: str = "auto"
    """pairs (of a ranking, every two answers that do not tie), plackett_luce (a whole ranking at once), squared_error
    (of ratings, shifted and scaled to mean 0 and deviation 1), ordinal (of ratings of a few levels, by their order
    alone); auto: squared_error for ratings, else pairs."""
    label_smoothing: float = 0.0
    """Share of pairs taken to be the wrong way round, below one half."""
    learning_rate: Any = "lora:1e-4"
    """As `sft.learning_rate`."""
    loraplus_lr_ratio: float | None = None
    """As `sft.loraplus_lr_ratio`."""
    epochs: float = 1.0
    """Passes over the pairs."""
    batch_size: int = 16
    """Pairs an optimizer step."""
    max_length: int = 1024
    """Tokens of prompt and completion; longer pairs are left out, and counted."""
    members: int = 1
    """Reward models for reward=ensemble, alike but for their seeds, `seed` and those after it: adapter and head as they
    start, and the order of rows. One after the other, into rm/member_1, rm/member_2, …; the best on held-out pairs is
    the stage's result, too."""
    norm_samples: int = 256
    """Samples of the starting policy on which the score's mean and deviation are measured."""
    judge: Any = None
    """A reward in whose order these samples should score, too: +reward@rm.judge=fn rm.judge.fn=my_rules.true_score"""
    args: dict[str, Any] = field(default_factory=open_node)
    """Any other argument of trl.RewardConfig."""


@dataclass
class Direct:
    """What dpo and kto have in common."""

    data: Any = None
    """Where answers come from: data@dpo.data=preferences."""
    beta: float = 0.1
    """Price of leaving the reference: the larger, the nearer the policy stays."""
    learning_rate: Any = "${actor.learning_rate}"
    """As `sft.learning_rate`, by the actor's method."""
    epochs: float = 1.0
    """Passes over the data."""
    batch_size: int = 16
    """Rows an optimizer step: pairs of dpo, answers of kto."""
    max_length: int = 1024
    """Tokens of prompt and answer; longer rows are left out, and counted."""
    args: dict[str, Any] = field(default_factory=open_node)
    """Any other argument of trl.DPOConfig or trl.KTOConfig, such as kto.args.undesirable_weight."""


@dataclass
class DPO(Direct):
    _target_: str = "align.stages.direct.DPO"
    loss: Any = "sigmoid"
    """trl.DPOConfig's loss_type: sigmoid, ipo, hinge, robust … or a list of them."""


@dataclass
class KTO(Direct):
    """On answers marked good or bad (data@kto.data=unpaired), or on pairs, each side on its own."""

    _target_: str = "align.stages.direct.KTO"
    loss: str = "kto"
    """trl.KTOConfig's loss_type: kto or apo_zero_unpaired."""


@dataclass
class PPO:
    _target_: str = "align.stages.ppo.PPOStage"
    data: Any = None
    """Where prompts come from: data@ppo.data=prompts."""
    steps: int = 100
    """Rollout batches."""
    batch_size: int = 64
    """Completions a step, over all ranks."""
    minibatches: int = 2
    """Optimizer steps an epoch."""
    micro_batch_size: int = 16
    """Completions in one forward pass; changes time and memory, not the result."""
    micro_batch_tokens: int | None = None
    """Tokens in one forward pass, padding and all, as a further bound on it; a longer row goes alone."""
    gradient_checkpointing: bool = False
    """Layers of trained models are computed again in the backward pass: less memory, a third more time."""
    epochs: int = 2
    """Passes over each rollout batch."""
    dynamic_sampling: int = 0
    """Further batches of prompts that a step may draw, to replace prompts whose samples all score alike (Yu et al.
    2025, DAPO, section 3.2)."""
    target_kl: float | None = None
    """The passes end after a minibatch whose mean approximate KL from the old policy, in nats a token, is above it."""
    critic_warmup: int = 0
    """Steps at the start in which the critic alone trains."""
    kl_coef: float = 0.05
    """Price of one nat away from the reference, in units of the score."""
    kl_in: str = "reward"
    """reward (a token's KL is taken off its reward), or loss (it is added to the policy's loss, as GRPO has it)."""
    kl_estimator: str = "auto"
    """k1, k2 or k3 (Schulman 2020); auto: k1 in the reward, k3 in the loss."""
    kl_target: float | None = None
    """KL in nats a sequence that kl_coef is steered to after each step (Ziegler et al. 2019); unset: it is fixed."""
    kl_horizon: int = 10000
    """Completions in which kl_coef moves by 20 % at most."""
    clip: float = 0.2
    """The policy's ratio is clipped to 1 ± clip (Schulman et al. 2017, eq. 7)."""
    loss_aggregation: str = "token_mean"
    """A minibatch's loss from its tokens': token_mean, sequence_mean_token_mean (GRPO), sequence_mean_token_sum, or
    fixed_length (sums over rollout.max_new_tokens: Dr. GRPO)."""
    old_logp: str = "auto"
    """Where the ratio starts from: log-probabilities by the trainer, or by the engine that sampled; auto: the
    trainer's, without a pass for them where the engine's are the same (rollout=hf in float32; a first step checks)."""
    importance_correction: str = "none"
    """Weighs the policy's loss by p(trainer) / p(engine): none, token or sequence."""
    importance_how: str = "truncate"
    """Weights above the cap: truncate (to the cap) or mask (to 0)."""
    importance_cap: float = 2.0
    """Largest weight."""
    value_clip: float = 0.2
    """The value is clipped to ± value_clip around its estimate at rollout."""
    gamma: float = 1.0
    """Discount of later rewards; 1 for language, where only the last token is scored."""
    lam: float = 0.95
    """Mixing of one-step and whole returns (Schulman et al. 2016, eq. 16)."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm, a role at a time; 0: not at all."""
    score_clip: float | None = None
    """Scores are clipped to ± score_clip."""
    whiten_rewards: bool = False
    """Rewards a token are scaled to variance 1 over the batch, around their mean, which stays."""
    missing_eos_penalty: float | None = None
    """Taken off the score of a completion that did not end by itself."""
    missing_eos_score: float | None = None
    """The score of a completion that did not end by itself, whatever the reward says."""
    max_prompt_tokens: int | str = "auto"
    """Longer prompts are left out, and counted; auto: what the model's positions leave beside rollout.max_new_tokens,
    up to 512."""
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
    _target_: str = "align.stages.evaluate.stage.Evaluate"
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
    shots: Any = field(default_factory=list)
    """[0,4]: the model that fine-tuning started from answers sft.data's held-out rows after so many examples, the
    trained ones after none."""
    metrics: Any = field(default_factory=lambda: ["exact_match", "f1"])
    """Of these answers: exact_match (letter for letter), f1 (of words, SQuAD's), accuracy (the likeliest label), format
    (pattern, schema)."""
    pattern: str | None = None
    """A regular expression that a well-formed answer matches as a whole."""
    schema: str | None = None
    """A JSON schema's file, by which a well-formed answer is JSON."""
    general: Any = None
    """Text whose loss tells what was forgotten, all of a file: data@evaluate.general=text evaluate.general.path=F."""
    diversity: bool = False
    """distinct-n, self-BLEU and entropy of the completions."""
