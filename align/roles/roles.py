"""Actor, critic and reference together: one call scores a rollout, one trains on a micro-batch.

Shapes: B completions, T response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from align import ops
from align.roles.batching import by_length
from align.roles.critic import ValueCritic
from align.roles.policy import AdapterReference, FrozenReference, TrainedPolicy
from align.types import Experience, Rollout, Scores


class Roles:
    """Each role on a backbone of its own, but for a reference that is an adapter of the actor's."""

    def __init__(
        self,
        actor: TrainedPolicy,
        critic: ValueCritic | None,
        reference: AdapterReference | FrozenReference,
        micro_batch_size: int,
    ) -> None:
        self.actor = actor
        self.critic = critic
        self.reference = reference
        self.micro_batch_size = micro_batch_size
        self.device = actor.device

    @torch.no_grad()
    def score(self, rollout: Rollout, want: set[str]) -> Scores:
        """Scores of a whole rollout, without gradient: any of logp, ref_logp, value, entropy.

        What lies outside a row's response mask is 0.
        """
        scores = Scores(**{f"{name}_BT": torch.zeros_like(rollout.logp_BT) for name in want})
        for rows in by_length(rollout.length_B(), self.micro_batch_size):
            part = rollout[rows].trim()
            length = part.response_ids_BT.shape[1]
            for name, value_BT in self._score(part, want).items():
                getattr(scores, name)[rows, :length] = value_BT * part.response_mask_BT
        return scores

    def train(self, micro: Experience, loss: Callable[[Scores], dict[str, Tensor]], last: bool) -> None:
        """Forward, the losses by role, and their backward passes; `last` before an optimizer step."""
        rollout = micro.rollout
        logits_BTV = self.actor.logits_BTV(rollout)
        scores = Scores(
            logp_BT=ops.logprobs(logits_BTV, rollout.response_ids_BT, rollout.temperature),
            entropy_BT=ops.entropy(logits_BTV.detach() / rollout.temperature),
            value_BT=self.critic.value_BT(rollout) if self.critic else None,
        )
        losses = loss(scores)
        self.actor.engine.backward(losses["actor"], last)
        if self.critic:
            self.critic.engine.backward(losses["critic"], last)

    def step(self) -> dict[str, float]:
        """One optimizer step of every role; the norms of their gradients before clipping."""
        norms = {"actor": self.actor.step()}
        if self.critic:
            norms["critic"] = self.critic.step()
        return norms

    def save(self, directory: Path) -> None:
        """The actor at the folder's root, the critic in `critic/`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.actor.save(directory)
        if self.critic:
            self.critic.save(directory / "critic")

    def _score(self, rollout: Rollout, want: set[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        ids_BT, temperature = rollout.response_ids_BT, rollout.temperature
        if want & {"logp", "entropy"}:
            logits_BTV = self.actor.logits_BTV(rollout)
            found["logp_BT"] = ops.logprobs(logits_BTV, ids_BT, temperature)
            found["entropy_BT"] = ops.entropy(logits_BTV / temperature) if "entropy" in want else None
        if "ref_logp" in want:
            found["ref_logp_BT"] = ops.logprobs(self.reference.logits_BTV(rollout), ids_BT, temperature)
        if "value" in want and self.critic:
            found["value_BT"] = self.critic.value_BT(rollout)
        return {name: value for name, value in found.items() if value is not None and name[:-3] in want}
