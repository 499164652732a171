"""Actor, critic, reference and shared reward models together: one call scores a rollout, one trains.

Shapes: B completions, T response tokens, K reward models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from align.engine.plain import Schedule
from align.roles.critic import save_critic
from align.roles.group import OWNER, Group
from align.roles.modules import by_length, size
from align.roles.policy import TrainedPolicy
from align.types import Experience, Rollout, Scores


class Roles:
    """Groups of roles, each on one backbone; which role sits where is hidden here."""

    def __init__(
        self,
        groups: list[Group],
        micro_batch_size: int,
        micro_batch_tokens: int | None = None,
        schedules: dict[str, Schedule] | None = None,
    ) -> None:
        self.groups = groups
        self.micro_batch_size = micro_batch_size
        self.micro_batch_tokens = micro_batch_tokens
        self.schedules = schedules or {}
        home = self.group("actor")
        self.actor = TrainedPolicy(home.backbone.model, home.engine, home.backbone.model.device)
        self.device = self.actor.device

    def group(self, role: str) -> Group | None:
        """The group that `role` sits in; None where nobody has that role."""
        return next((group for group in self.groups if role in group.backbone.adapters), None)

    @torch.no_grad()
    def score(self, rollout: Rollout, want: set[str]) -> Scores:
        """Scores of a whole rollout, without gradient: any of logp, entropy, ref_logp, value, reward.

        What lies outside a row's response mask is 0. Roles on one backbone share its trunk pass.
        """
        fields = [name for name in OWNER if name.rpartition("_")[0] in want]
        scores = Scores(**{name: rollout.logp_BT.new_zeros(self._shape(name, rollout)) for name in fields})
        roles = {OWNER[name] for name in fields}
        for rows in self.micro_batches(rollout.length_B(), roles):
            part = rollout[rows].trim()
            for group in self.groups:
                for name, value in group.scores(part, roles).items():
                    if name in fields and name.endswith("_BT"):
                        getattr(scores, name)[rows, : value.shape[1]] = value
                    elif name in fields:
                        getattr(scores, name)[rows] = value
        return scores

    def micro_batches(self, length_B: Tensor, roles: Iterable[str] = ("actor", "critic")) -> Iterator[Tensor]:
        """Rows of like length that go through one pass together.

        A pass computes `micro_batch_size` rows and `micro_batch_tokens` tokens at most; a row counts for each
        adapter that it goes through.
        """
        width = max(group.width(roles) for group in self.groups)
        tokens = self.micro_batch_tokens and self.micro_batch_tokens // width
        yield from by_length(length_B, max(self.micro_batch_size // width, 1), tokens)

    def train(
        self,
        micro: Experience,
        loss: Callable[[Scores], dict[str, Tensor]],
        last: bool,
        roles: Iterable[str] = ("actor", "critic"),
    ) -> None:
        """Forward, losses and backward of `roles`; `last` before an optimizer step.

        `loss` is called once a group, with the scores of that group's roles alone, and returns a loss for each
        of them: a group's activations are gone before the next one's are made.
        """
        for group in self.groups:
            group.train(micro, loss, last, roles)

    def step(self) -> dict[str, float]:
        """One optimizer step of every role with a gradient; the norms of their gradients before clipping.

        Raises NotFinite, before any weight moves, if a gradient is not finite (under DeepSpeed: afterwards).
        """
        self.check()
        norms: dict[str, float] = {}
        for group in self.groups:
            norms |= group.step()
        self.actor.version += "actor" in norms
        return norms

    def check(self) -> None:
        """Raises NotFinite if a gradient that waits for a step is not finite (under DeepSpeed: never)."""
        for group in self.groups:
            group.check()

    def clear(self) -> None:
        """Drops the gradients that wait for a step."""
        for group in self.groups:
            group.clear()

    def anneal(self, step: int, steps: int) -> None:
        """Sets the learning rates of step `step` (from 0) out of `steps`."""
        for role, schedule in self.schedules.items():
            self.group(role).engine.set_rate(role, schedule.rate(step, steps))

    def rates(self) -> dict[str, float]:
        """The learning rate of each role that trains."""
        return {role: rate for group in self.groups if group.trained for role, rate in group.engine.rates().items()}

    def sizes(self) -> dict[str, int]:
        """Number of parameters that each role trains."""
        return {role: size(group.backbone.trained(role)) for group in self.groups for role in group.trained}

    def save(self, directory: Path) -> None:
        """The actor at the folder's root, the critic in `critic/`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.actor.save(directory)
        if critic := self.group("critic"):
            with critic.engine.gathered():
                save_critic(critic.backbone, directory / "critic")

    def _shape(self, name: str, rollout: Rollout) -> tuple[int, ...]:
        home = self.group("actor").backbone
        return tuple(rollout.logp_BT.shape) if name.endswith("_BT") else (len(rollout), len(home.score_heads))
