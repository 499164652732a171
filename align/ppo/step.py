"""Proximal policy optimisation of a language model (Schulman et al. 2017; Ziegler et al. 2019), one step a call.

    ppo = PPO(roles, rollout, reward, advantage, tokenizer, sampling)
    metrics = ppo.step(rows)

What differs from the papers: the score lands on the last response token (as verl, OpenRLHF and NeMo-RL
have it); log-probabilities of the policy, old policy and reference are all taken at the sampling
temperature; the token mean is over a minibatch, whatever its micro-batches; dropout is off throughout.

Shapes: B completions, T response tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align import ops
from align.engine.plain import NotFinite
from align.errors import AlignError, AlignWarning, StaleRolloutError
from align.policy_losses.clip import Clip
from align.ppo import loss as ppo_loss
from align.ppo import metrics as ppo_metrics
from align.ppo.options import PPOOptions
from align.ppo.results import check_attributes, check_shape
from align.ppo.rollouts import Row, texts_of, write
from align.ppo.sampling import ScoredRollout, replace_alike
from align.report.report import Clock
from align.rollout.keys import sample_key
from align.types import (
    Advantage,
    Experience,
    PolicyLoss,
    Reward,
    RewardState,
    Roles,
    Rollout,
    RolloutEngine,
    Sampling,
    Scored,
    Scores,
)

KNOWN_SCORES = {"logp", "ref_logp", "value", "entropy", "reward"}


class PPO:
    """The loop body: rollout, rewards, advantages, update, sync."""

    def __init__(
        self,
        roles: Roles,
        rollout: RolloutEngine,
        reward: Reward,
        advantage: Advantage,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        options: PPOOptions | None = None,
        samples_per_prompt: int = 1,
        seed: int = 0,
        policy_loss: PolicyLoss | None = None,
    ) -> None:
        """`policy_loss` is PPO's clipped one where none is given. Raises AlignError for options that cannot be."""
        check_attributes(reward, advantage, rollout)
        if unknown := reward.wants - KNOWN_SCORES:
            raise AlignError(f"the reward wants {sorted(unknown)}, and roles give {sorted(KNOWN_SCORES)}")
        self.roles = roles
        self.engine = rollout
        self.reward = reward
        self.advantage = advantage
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.options = options or PPOOptions()
        self.options.check_dynamic_sampling(samples_per_prompt)
        self.policy_loss = policy_loss or Clip(self.options.clip)
        self.kl_coef = self.options.kl_coef
        self.adaptive_kl = None
        if self.options.kl_target is not None:
            self.adaptive_kl = ops.AdaptiveKL(self.kl_coef, self.options.kl_target, self.options.kl_horizon)
        self.samples_per_prompt = samples_per_prompt
        self.seed = seed
        self.steps_done = 0
        self.clock = Clock()
        self.last: tuple[Rollout, Scored] | None = None
        self.receipt = rollout.attach(roles.actor)
        self.trusts_engine = None if ppo_loss.may_trust(rollout, self.options) else False  # None: a step will show

    def step(self, rows: list[Row], further: Iterable[list[Row]] = ()) -> dict[str, float]:
        """One PPO step on `samples_per_prompt` completions of each row; returns the step's metrics.

        `further` batches of other rows are drawn from where samples score alike (`options.dynamic_sampling`).
        """
        self.clock.start()
        self.roles.anneal(self.steps_done, self.options.steps)
        sampled, drawn = self.sample(rows), {}
        if self.samples_per_prompt > 1:
            sampled, drawn = replace_alike(sampled, further, self.sample, self.options.dynamic_sampling)
        rollout, scored = sampled.rollout, sampled.scored
        scores = self._old_logp(rollout, sampled.scores)
        experience, metrics = self.experience(rollout, scores, scored)
        with self.clock("update"):
            metrics |= self.update(experience)
        with self.clock("sync"):
            self.receipt = self.engine.sync(self.roles.actor)
        metrics |= {**drawn, "sync/bytes": self.receipt.bytes, "sync/gap": self.receipt.gap}
        if self.adaptive_kl:
            self.kl_coef = self.adaptive_kl.update(metrics["objective/kl"], len(rollout))
        self.steps_done += 1
        self.last = rollout, scored
        ppo_metrics.check(metrics, self.steps_done)
        rates = self.roles.rates()
        metrics |= {"lr" if role == "actor" else f"lr/{role}": rate for role, rate in rates.items()}
        return {**metrics, **sampled.logged, **self.clock.seconds(sampled.tokens)}

    def sample(self, rows: list[Row]) -> ScoredRollout:
        """Completions of each row by the policy as it is, with what roles and reward say of them."""
        with self.clock("generate"):
            rollout = write(
                self.engine, rows, self.sampling, seed=self.seed, purpose="train",
                step=self.steps_done, samples=self.samples_per_prompt,
            ).to(self.roles.device)  # fmt: skip
        self._check_version(rollout)
        with self.clock("score"):
            scores = self.roles.score(rollout, self._wanted())
        self.check_finite(rollout, scores)
        with self.clock("reward"):
            scored, logged = self.score_texts(rollout, scores, training=True)
        return ScoredRollout(rollout, scores, scored, logged, int(rollout.response_mask_BT.sum()))

    def _check_version(self, rollout: Rollout) -> None:
        """Every row was written by the policy that is about to be trained."""
        wrote, trains = set(rollout.version_B.tolist()), self.roles.actor.version
        if wrote != {trains}:
            raise StaleRolloutError(
                f"step {self.steps_done}: rows were written by version {sorted(wrote)} of the policy, "
                f"which is at {trains}"
            )

    def check_finite(self, rollout: Rollout, scores: Scores) -> None:
        """Log-probabilities and values are numbers: where a model has diverged, or was loaded so, it is named."""
        if who := ppo_loss.not_finite(rollout, scores, self.engine.name):
            instead = "use a lower {0}.learning_rate" if self.steps_done else "use a model whose weights are finite"
            instead = instead.format("critic" if "critic" in who else "actor")
            raise AlignError(f"PPO step {self.steps_done + 1}: {who} are not finite; nothing was trained\n  {instead}")

    def score_texts(self, rollout: Rollout, scores: Scores, training: bool = False) -> tuple[Scored, dict[str, float]]:
        """Scores of the completions, no penalty taken off; what the rewards log.

        NaN is a completion without a score. In `training` a reward may learn from the batch.
        """
        logged: dict[str, float] = {}
        state = RewardState(self.steps_done, scores, log_metric=logged.__setitem__, training=training)
        scored = self.reward(rollout, texts_of(rollout, self.tokenizer), state)
        check_shape("reward", self.reward, "a score", scored.score_B, rollout.finished_B)
        score_B = scored.score_B.to(rollout.logp_BT.device)
        if score_B.isinf().any() and self.options.score_clip is None:
            row = int(score_B.isinf().nonzero()[0])
            raise AlignError(
                f"PPO step {self.steps_done + 1}: the reward scores row {row} of the batch {float(score_B[row])}\n"
                "  look at what the reward gives, or use ppo.score_clip=10"
            )
        return replace(scored, score_B=score_B), logged

    def penalised(self, score_B: Tensor, finished_B: Tensor) -> Tensor:
        """Scores less what a missing end costs; NaN stays NaN."""
        if self.options.missing_eos_penalty:
            score_B = torch.where(finished_B, score_B, score_B - self.options.missing_eos_penalty)
        if self.options.missing_eos_score is not None:
            score_B = torch.where(finished_B | score_B.isnan(), score_B, self.options.missing_eos_score)
        return score_B

    def experience(self, rollout: Rollout, old: Scores, scored: Scored) -> tuple[Experience, dict[str, float]]:
        """Rewards and advantages of a rollout. Rows without a score (NaN) are left out of the update."""
        options, estimator = self.options, ppo_loss.kl_estimator(self.options)
        kl_coef = self.kl_coef if options.kl_in == "reward" else 0.0
        mask_BT = rollout.loss_mask_BT & ~scored.score_B.isnan()[:, None]
        score_B = self.penalised(scored.score_B, rollout.finished_B)
        plain_BT = reward_BT = ops.shape_rewards(
            score_B, old.logp_BT, old.ref_logp_BT, mask_BT, kl_coef, options.score_clip, estimator
        )
        if options.whiten_rewards:
            reward_BT = ops.whiten(reward_BT, mask_BT, shift_mean=False)
        advantage_BT, return_BT = self.advantage(score_B, reward_BT, old.value_BT, mask_BT, rollout.row_B)
        check_shape("advantage", self.advantage, "an advantage", advantage_BT, mask_BT)
        if self.advantage.needs_critic:
            check_shape("advantage", self.advantage, "a return", return_BT, mask_BT)
        experience = Experience(replace(rollout, loss_mask_BT=mask_BT), old, advantage_BT, return_BT)
        metrics = ppo_metrics.of_rollout(rollout, old, scored, plain_BT, return_BT, mask_BT)
        metrics |= ppo_metrics.of_weights(ppo_loss.weights(experience, options), mask_BT)
        return experience, {**metrics, "objective/kl_coef": self.kl_coef}

    def update(self, experience: Experience) -> dict[str, float]:
        """`epochs` passes over the experience, `minibatches` optimizer steps each; fewer beyond `target_kl`."""
        average, optimizer_steps = ppo_metrics.Average(), 0
        target = self.options.target_kl
        for epoch in range(self.options.epochs):
            for number, minibatch in enumerate(self._minibatches(experience, epoch), start=1):
                total = ops.counted(minibatch.rollout.loss_mask_BT, self.options.loss_aggregation)
                average.add({"skipped": float(total == 0)}, 1)
                if total == 0:
                    continue
                place = f"PPO step {self.steps_done + 1}, epoch {epoch + 1}, minibatch {number}"
                moved = self._train(minibatch, total, place, average)
                optimizer_steps += 1
                if target is not None and moved > target:
                    return {**average.means(), "val/optimizer_steps": optimizer_steps}
        return {**average.means(), "val/optimizer_steps": optimizer_steps}

    def _train(self, minibatch: Experience, total: int, place: str, average: ppo_metrics.Average) -> float:
        """One optimizer step of the roles that train now; how far the policy was from the old one before it."""
        own = ppo_metrics.Average()
        kl_coef = self.kl_coef if self.options.kl_in == "loss" else 0.0
        losses = ppo_loss.MinibatchLoss(
            self.options, self.policy_loss, kl_coef, self.sampling.max_new_tokens, total, place, (average, own)
        )
        roles = ("critic",) if self.steps_done < self.options.critic_warmup else ("actor", "critic")
        groups = list(self.roles.micro_batches(minibatch.rollout.length_B(), roles))
        try:
            for number, rows in enumerate(groups, start=1):
                micro = minibatch[rows].trim()
                self.roles.train(micro, partial(losses, micro=micro, number=number), number == len(groups), roles)
            norms = self.roles.step()
        except NotFinite as error:
            self.roles.clear()
            where = ppo_loss.where_not_finite(self.roles, minibatch, groups, losses, roles)
            raise AlignError(f"{where}: {error}\n  use a lower learning_rate or ppo.max_grad_norm") from error
        except Exception:
            self.roles.clear()
            raise
        average.add({f"grad_norm/{role}": norm for role, norm in norms.items()}, 1)
        return own.means().get("policy/approxkl_avg", 0.0)

    def _wanted(self) -> set[str]:
        want = {"ref_logp"} | self.reward.wants
        if self.advantage.needs_critic:
            want |= {"value"}
        return want if self.trusts_engine else want | {"logp"}

    def _old_logp(self, rollout: Rollout, scores: Scores) -> Scores:
        """With the engine's log-probabilities where the trainer computed none; the first step with tokens decides."""
        if self.trusts_engine and scores.logp_BT is None:
            return replace(scores, logp_BT=rollout.logp_BT)
        if self.trusts_engine is None and rollout.response_mask_BT.any():
            self.trusts_engine = ppo_metrics.engine_gap(rollout, scores)["val/engine_logp_gap"] < ppo_loss.TRUSTED_GAP
            if not self.trusts_engine:
                warnings.warn(
                    f"rollout={self.engine.name} writes by other log-probabilities than the trainer computes (by "
                    f"{ppo_loss.TRUSTED_GAP} and more): ppo.old_logp=auto takes the trainer's",
                    AlignWarning,
                    stacklevel=3,
                )
        return scores

    def _minibatches(self, experience: Experience, epoch: int) -> Iterator[Experience]:
        """The experience in a fresh order each epoch, cut into minibatches."""
        generator = torch.Generator().manual_seed(sample_key(self.seed, "minibatch", self.steps_done, epoch, 0))
        order = torch.randperm(len(experience), generator=generator)
        for rows in order.tensor_split(min(self.options.minibatches, len(experience))):
            yield experience[rows]
