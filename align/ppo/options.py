"""Settings of PPO."""

from __future__ import annotations

import math

from align.config.fields import choice, number, section, value
from align.config.values import Plug
from align.errors import AlignError


@section("ppo")
class PPOOptions:
    """Settings of the PPO loop and of its stage."""

    data: Plug | None = None
    """Source of the prompts: data@ppo.data=prompts."""
    steps: int = number(100, low=1)
    """Rollout batches."""
    batch_size: int = number(64, low=1)
    """Completions a step, over all ranks."""
    minibatches: int = number(2, low=1)
    """Optimizer steps an epoch."""
    micro_batch_size: int = number(16, low=1)
    """Completions in one forward pass; changes time and memory, not the result."""
    micro_batch_tokens: int | None = number(None, low=1, rare=True)
    """Tokens in one forward pass, padding and all, as a further bound on it; a longer row goes alone."""
    gradient_checkpointing: bool = value(False, rare=True)
    """Layers of trained models are computed again in the backward pass: less memory, a third more time."""
    epochs: int = number(2, low=1)
    """Passes over each rollout batch."""
    dynamic_sampling: int = number(0, low=0, rare=True)
    """Further batches of prompts that a step may draw, to replace prompts whose samples all score alike (Yu et al.
    2025, DAPO, section 3.2)."""
    target_kl: float | None = number(None, above=0, rare=True)
    """The passes end after a minibatch whose mean approximate KL from the old policy, in nats a token, is above it."""
    critic_warmup: int = number(0, low=0, rare=True)
    """Steps at the start in which the critic alone trains."""
    kl_coef: float = number(0.05, low=0, high=100)
    """Price of one nat away from the reference, in units of the score."""
    kl_in: str = choice("reward", "reward", "loss", rare=True)
    """reward (a token's KL is taken off its reward), or loss (it is added to the policy's loss, as GRPO has it)."""
    kl_estimator: str = choice("auto", "auto", "k1", "k2", "k3", rare=True)
    """k1, k2 or k3 (Schulman 2020); auto: k1 in the reward, k3 in the loss. All three estimate KL(policy‖reference). In
    the loss the gradient of k2 is that of KL(policy‖reference), and the gradient of k3 that of KL(reference‖policy)."""
    kl_target: float | None = number(None, above=0, rare=True)
    """KL in nats a sequence that kl_coef is steered to after each step (Ziegler et al. 2019); unset: it is fixed."""
    kl_horizon: int = number(10000, low=1, rare=True)
    """Completions in which kl_coef moves by 20 % at most."""
    clip: float = number(0.2, above=0, high=10)
    """The policy's ratio is clipped to 1 ± clip (Schulman et al. 2017, eq. 7)."""
    loss_aggregation: str = choice(
        "token_mean", "token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "fixed_length", rare=True
    )
    """A minibatch's loss from its tokens': token_mean, sequence_mean_token_mean (GRPO), sequence_mean_token_sum, or
    fixed_length (sums over rollout.max_new_tokens: Dr. GRPO)."""
    old_logp: str = choice("auto", "auto", "trainer", "engine", rare=True)
    """Source of the ratio's old log-probabilities: the trainer, or the engine that sampled; auto: the
    trainer's, without a pass for them where the engine's are the same (rollout=hf in float32; a first step checks)."""
    importance_correction: str = choice("none", "none", "token", "sequence", rare=True)
    """Weighs the policy's loss by p(trainer) / p(engine): none, token or sequence."""
    importance_how: str = choice("truncate", "truncate", "mask", rare=True)
    """Weights above the cap: truncate (to the cap) or mask (to 0)."""
    importance_cap: float = number(2.0, above=0, rare=True)
    """Largest weight."""
    value_clip: float = number(0.2, above=0, high=100, rare=True)
    """The value is clipped to ± value_clip around its estimate at rollout."""
    gamma: float = number(1.0, low=0, high=1)
    """Discount of later rewards; 1 for language, where only the last token is scored."""
    lam: float = number(0.95, low=0, high=1)
    """Mixing of one-step and whole returns (Schulman et al. 2016, eq. 16)."""
    max_grad_norm: float = number(1.0, low=0)
    """Gradients are clipped to this norm, a role at a time; 0: not at all."""
    score_clip: float | None = number(None, above=0, rare=True)
    """Scores are clipped to ± score_clip."""
    whiten_rewards: bool = value(False, rare=True)
    """Rewards a token are scaled to variance 1 over the batch, around their mean, which stays."""
    missing_eos_penalty: float | None = number(None, low=0)
    """Taken off the score of a completion that did not end by itself, in its reward."""
    missing_eos_score: float | None = number(None, rare=True)
    """The score of a completion that did not end by itself, in its reward, whatever `reward` gives."""
    max_prompt_tokens: int | str = number("auto", low=1, words=("auto",))
    """Longer prompts are left out, and counted; auto: what the model's positions leave beside rollout.max_new_tokens,
    up to 512."""
    eval_every: int = number(0, low=0)
    """Steps between scorings of held-out prompts, which choose `best/`; 0: never."""
    eval_prompts: int = number(64, low=1)
    """Held-out prompts scored."""
    save_every: int = number(0, low=0, rare=True)
    """Steps between checkpoints; 0: only the last policy."""
    show_every: int = number(0, low=0)
    """Steps between prints of three samples; 0: never."""

    def check_together(self) -> None:
        """Raise AlignError for settings that contradict one another."""
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise AlignError(
                "ppo.kl_estimator=k1 with ppo.kl_in=loss: the gradient of k1 is 0 on average\n  use ppo.kl_estimator=k3"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise AlignError(
                "ppo.kl_target multiplies ppo.kl_coef, and ppo.kl_coef=0 stays 0\n  use ppo.kl_coef=0.05, to begin with"
            )
        if self.importance_correction != "none" and self.old_logp == "engine":
            raise AlignError(
                f"ppo.importance_correction={self.importance_correction} with ppo.old_logp=engine: the ratio already "
                "starts from the engine\n  use ppo.old_logp=trainer, or ppo.importance_correction=none"
            )
        if self.missing_eos_score is not None and self.missing_eos_penalty:
            raise AlignError(
                f"ppo.missing_eos_score={self.missing_eos_score} replaces the score that "
                f"ppo.missing_eos_penalty={self.missing_eos_penalty} is taken off\n"
                "  use one of them: ppo.missing_eos_penalty=null or ppo.missing_eos_score=null"
            )

    def check_batches(self, samples_per_prompt: int, min_samples: int) -> None:
        """Raise AlignError where a step's completions cannot be divided so; `min_samples` is the advantage's."""
        size = self.batch_size
        if samples_per_prompt < min_samples:
            raise AlignError(
                f"rollout.samples_per_prompt={samples_per_prompt}: this advantage compares the samples of one prompt, "
                f"so it needs {min_samples} or more\n  use rollout.samples_per_prompt=4"
            )
        self.check_dynamic_sampling(samples_per_prompt)
        if size % samples_per_prompt:
            near = max(round(size / samples_per_prompt), 1) * samples_per_prompt
            raise AlignError(
                f"ppo.batch_size={size} completions cannot be divided by rollout.samples_per_prompt="
                f"{samples_per_prompt}\n  use ppo.batch_size={near}"
            )
        if self.minibatches > size:
            raise AlignError(
                f"ppo.minibatches={self.minibatches} is more than ppo.batch_size={size}\n  use {size} or less"
            )
        if size % self.minibatches:
            fitting = [n for n in range(1, size + 1) if size % n == 0]
            near = min(fitting, key=lambda n: (abs(n - self.minibatches), -n))
            step = math.lcm(self.minibatches, samples_per_prompt)
            raise AlignError(
                f"ppo.minibatches={self.minibatches} does not divide ppo.batch_size={size}\n"
                f"  use ppo.minibatches={near}, or ppo.batch_size={max(round(size / step), 1) * step}"
            )

    def check_dynamic_sampling(self, samples_per_prompt: int) -> None:
        if self.dynamic_sampling and samples_per_prompt == 1:
            raise AlignError(
                f"ppo.dynamic_sampling={self.dynamic_sampling} compares the samples of one prompt, and "
                "rollout.samples_per_prompt=1\n  use rollout.samples_per_prompt=4, or ppo.dynamic_sampling=0"
            )

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps * self.epochs * self.minibatches
