"""Proximal policy optimisation of a language model (Schulman et al. 2017; Ziegler et al. 2019), one step a call.

    ppo = PPO(roles, rollout, reward, advantage, tokenizer, sampling)
    metrics = ppo.step(rows)

What differs from the papers: the score lands on the last response token (as verl, OpenRLHF and NeMo-RL
have it); log-probabilities of the policy, old policy and reference are all taken at the sampling
temperature; the token mean is over a minibatch, whatever its micro-batches; dropout is off throughout.

Shapes: B completions, T response tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align import config, ops
from align.errors import AlignError
from align.report.clock import Clock
from align.rollout.keys import sample_key
from align.stages import ppo_metrics
from align.stages.rollouts import Row, texts_of, write
from align.types import (
    Advantage,
    Experience,
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
        options: config.PPO | None = None,
        samples_per_prompt: int = 1,
        seed: int = 0,
    ) -> None:
        if unknown := reward.wants - KNOWN_SCORES:
            raise AlignError(f"the reward wants {sorted(unknown)}, and roles give {sorted(KNOWN_SCORES)}")
        self.roles = roles
        self.engine = rollout
        self.reward = reward
        self.advantage = advantage
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.options = options or config.PPO()
        self.samples_per_prompt = samples_per_prompt
        self.seed = seed
        self.steps_done = 0
        self.clock = Clock()
        self.last: tuple[Rollout, Scored] | None = None
        self.receipt = rollout.attach(roles.actor)

    def step(self, rows: list[Row]) -> dict[str, float]:
        """One PPO step on `samples_per_prompt` completions of each row; returns the step's metrics."""
        self.clock.start()
        self.roles.anneal(self.steps_done, self.options.steps)
        with self.clock("generate"):
            rollout = write(
                self.engine, rows, self.sampling, seed=self.seed, purpose="train",
                step=self.steps_done, samples=self.samples_per_prompt,
            ).to(self.roles.device)  # fmt: skip
        with self.clock("score"):
            scores = self.roles.score(rollout, self._wanted())
        with self.clock("reward"):
            scored, logged = self.score_texts(rollout, scores)
        experience, metrics = self.experience(rollout, scores, scored)
        with self.clock("update"):
            metrics |= self.update(experience)
        with self.clock("sync"):
            self.receipt = self.engine.sync(self.roles.actor)
        self.steps_done += 1
        self.last = rollout, scored
        rates = self.roles.rates()
        metrics |= {"lr" if role == "actor" else f"lr/{role}": rate for role, rate in rates.items()}
        return {**metrics, **logged, **self.clock.seconds(int(rollout.response_mask_BT.sum()))}

    def score_texts(self, rollout: Rollout, scores: Scores) -> tuple[Scored, dict[str, float]]:
        """Scores of the completions, after the penalty for those that did not end; what the rewards log."""
        logged: dict[str, float] = {}
        state = RewardState(self.steps_done, scores, log_metric=logged.__setitem__)
        scored = self.reward(rollout, texts_of(rollout, self.tokenizer), state)
        score_B = scored.score_B.to(rollout.logp_BT.device)
        if self.options.missing_eos_penalty:
            score_B = torch.where(rollout.finished_B, score_B, score_B - self.options.missing_eos_penalty)
        return replace(scored, score_B=score_B), logged

    def experience(self, rollout: Rollout, old: Scores, scored: Scored) -> tuple[Experience, dict[str, float]]:
        """Rewards and advantages of a rollout. Rows without a score (NaN) are left out of the update."""
        judged_B = ~scored.score_B.isnan()
        mask_BT = rollout.loss_mask_BT & judged_B[:, None]
        reward_BT = ops.shape_rewards(
            scored.score_B, old.logp_BT, old.ref_logp_BT, mask_BT, self.options.kl_coef, self.options.score_clip
        )
        advantage_BT, return_BT = self.advantage(scored.score_B, reward_BT, old.value_BT, mask_BT, rollout.row_B)
        experience = Experience(replace(rollout, loss_mask_BT=mask_BT), old, advantage_BT, return_BT)
        return experience, ppo_metrics.of_rollout(rollout, old, scored, return_BT, mask_BT, self.options.kl_coef)

    def update(self, experience: Experience) -> dict[str, float]:
        """`epochs` passes over the experience, `minibatches` optimizer steps each."""
        average = ppo_metrics.Average()
        for epoch in range(self.options.epochs):
            for minibatch in self._minibatches(experience, epoch):
                tokens = int(minibatch.rollout.loss_mask_BT.sum())
                average.add({"skipped": float(tokens == 0)}, 1)
                if tokens == 0:
                    continue
                groups = list(self.roles.micro_batches(minibatch.rollout.length_B()))
                for number, rows in enumerate(groups, start=1):
                    micro = minibatch[rows].trim()
                    loss = partial(self.losses, micro=micro, tokens=tokens, average=average)
                    self.roles.train(micro, loss, last=number == len(groups))
                average.add({f"grad_norm/{role}": norm for role, norm in self.roles.step().items()}, 1)
        return average.means()

    def losses(self, new: Scores, micro: Experience, tokens: int, average: ppo_metrics.Average) -> dict[str, Tensor]:
        """This micro-batch's share of the minibatch's token-mean losses, by role."""
        mask_BT = micro.rollout.loss_mask_BT
        losses = {}
        if new.logp_BT is not None:
            policy_BT = ops.policy_loss(new.logp_BT, micro.old.logp_BT, micro.advantage_BT, self.options.clip)
            losses["actor"] = (policy_BT * mask_BT).sum() / tokens
        if new.value_BT is not None:
            value_BT = ops.value_loss(new.value_BT, micro.old.value_BT, micro.return_BT, self.options.value_clip)
            losses["critic"] = (value_BT * mask_BT).sum() / tokens
        average.add(ppo_metrics.of_update(new, micro, losses, tokens, self.options), int(mask_BT.sum()))
        return losses

    def _wanted(self) -> set[str]:
        want = {"logp", "ref_logp"} | self.reward.wants
        return want | {"value"} if self.advantage.needs_critic else want

    def _minibatches(self, experience: Experience, epoch: int) -> Iterator[Experience]:
        """The experience in a fresh order each epoch, cut into minibatches."""
        generator = torch.Generator().manual_seed(sample_key(self.seed, "minibatch", self.steps_done, epoch, 0))
        order = torch.randperm(len(experience), generator=generator)
        for rows in order.tensor_split(min(self.options.minibatches, len(experience))):
            yield experience[rows]
