"""The losses of a minibatch, micro-batch by micro-batch.

Shapes: B completions, T response tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from align import ops
from align.engine.plain import NotFinite
from align.errors import AlignError
from align.ppo import metrics as ppo_metrics
from align.ppo.options import PPOOptions
from align.ppo.results import check_shape
from align.types import Experience, PolicyLoss, Roles, Rollout, RolloutEngine, Scores

TRUSTED_GAP = 1e-3
"""Log-probabilities of engine and trainer that never differ by as much are the same: float32 rounds to below 1e-4."""


@dataclass
class MinibatchLoss:
    """Called with what the roles say of a micro-batch, it gives the micro-batch's share of the losses, by role.

    The shares of all micro-batches add up to the minibatch's losses, however it is cut and trimmed.
    """

    options: PPOOptions
    policy_loss: PolicyLoss
    kl_coef: float
    """Price of the KL in the loss; 0 where it is in the reward."""
    length: int
    """Tokens that a response may have, for `fixed_length`."""
    total: int
    """Tokens or rows of the whole minibatch that the loss is a mean over (`ops.counted`)."""
    place: str
    """Step and minibatch, for errors."""
    records: tuple[ppo_metrics.Average, ...]
    """Averages that take the metrics."""

    def __call__(self, new: Scores, micro: Experience, number: int) -> dict[str, Tensor]:
        """Losses of micro-batch `number` of those roles that `new` has scores of.

        Raises AlignError for a loss that is not finite, before its backward pass.
        """
        mask_BT, how = micro.rollout.loss_mask_BT, self.options.loss_aggregation
        share = partial(ops.aggregate, mask=mask_BT, how=how, length=self.length, total=self.total)
        losses, terms = {}, {}
        if new.logp_BT is not None:
            losses["actor"] = terms["policy"] = share(self._policy(new.logp_BT, micro))
            if self.kl_coef:
                terms["kl"] = share(ops.kl(new.logp_BT, micro.old.ref_logp_BT, kl_estimator(self.options)))
                losses["actor"] = losses["actor"] + self.kl_coef * terms["kl"]
        if new.value_BT is not None:
            value_BT = ops.value_loss(new.value_BT, micro.old.value_BT, micro.return_BT, self.options.value_clip)
            losses["critic"] = terms["value"] = share(value_BT)
        for role, loss in losses.items():
            self._check(role, float(loss.detach()), number, micro)
        own = ops.counted(mask_BT, how)
        metrics = ppo_metrics.of_update(new, micro, old_logp(micro, self.options), self.options)
        means = {f"loss/{name}_avg": term.detach() * self.total / max(own, 1) for name, term in terms.items()}
        for record in self.records:
            record.add(metrics, int(mask_BT.sum()))
            record.add(means, own)
        return losses

    def _policy(self, logp_BT: Tensor, micro: Experience) -> Tensor:
        mask_BT = micro.rollout.loss_mask_BT
        loss_BT = self.policy_loss(logp_BT, old_logp(micro, self.options), micro.advantage_BT, mask_BT)
        check_shape("policy_loss", self.policy_loss, "the loss of each token", loss_BT, mask_BT)
        weight_BT = weights(micro, self.options)
        return loss_BT if weight_BT is None else loss_BT * weight_BT

    def _check(self, role: str, loss: float, number: int, micro: Experience) -> None:
        if math.isfinite(loss):
            return
        given = micro.advantage_BT if role == "actor" else micro.return_BT
        if not given[micro.rollout.loss_mask_BT].isfinite().all():
            instead = "its advantages are not finite already: look at what the reward gives, or use ppo.score_clip=10"
        else:
            instead = f"use a lower {role}.learning_rate or ppo.max_grad_norm"
        raise AlignError(
            f"{self.place}, micro-batch {number}: the loss of the {role} is {loss}; its weights are those of before\n"
            f"  {instead}"
        )


def where_not_finite(
    roles: Roles, minibatch: Experience, groups: list[Tensor], losses: MinibatchLoss, who: tuple[str, ...]
) -> str:
    """The place of a gradient that is not finite: each micro-batch is computed again, for its own; none is kept.

    The minibatch alone where no micro-batch's is (their sum is), or where the weights have moved since.
    """
    for number, rows in enumerate(groups, start=1):
        micro = minibatch[rows].trim()
        try:
            roles.train(micro, partial(losses, micro=micro, number=number), True, who)
            roles.check()
        except NotFinite:
            return f"{losses.place}, micro-batch {number}"
        except AlignError:
            break
        finally:
            roles.clear()
    return losses.place


def not_finite(rollout: Rollout, scores: Scores, engine: str) -> str:
    """The first kind of figures with one that is not finite on a real token, in words; '' where all are finite."""
    found = {
        f"log-probabilities of the actor (rollout={engine})": rollout.logp_BT,
        "log-probabilities of the actor": scores.logp_BT,
        "log-probabilities of the reference": scores.ref_logp_BT,
        "values of the critic": scores.value_BT,
    }
    mask_BT = rollout.response_mask_BT
    bad = (name for name, one_BT in found.items() if one_BT is not None and not one_BT[mask_BT].isfinite().all())
    return next(bad, "")


def kl_estimator(options: PPOOptions) -> str:
    """The estimator, where the options leave it to us."""
    return options.kl_estimator if options.kl_estimator != "auto" else {"reward": "k1", "loss": "k3"}[options.kl_in]


def may_trust(engine: RolloutEngine, options: PPOOptions) -> bool:
    """Return True where the engine's log-probabilities may be taken for the trainer's, without a further pass."""
    return options.old_logp == "auto" and options.importance_correction == "none" and engine.exact


def old_logp(experience: Experience, options: PPOOptions) -> Tensor:
    """The log-probabilities that the ratio starts from."""
    return experience.rollout.logp_BT if options.old_logp == "engine" else experience.old.logp_BT


def weights(experience: Experience, options: PPOOptions) -> Tensor | None:
    """Importance weights of every real token; None where nothing is corrected."""
    if options.importance_correction == "none":
        return None
    return ops.importance_weights(
        experience.old.logp_BT, experience.rollout.logp_BT, experience.rollout.loss_mask_BT,
        options.importance_correction, options.importance_how, options.importance_cap,
    )  # fmt: skip
