"""Roles on one backbone under one training engine.

Shapes: B rows, T response tokens, K reward models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from align.roles.backbone import ACTOR, CRITIC, REFERENCE, REWARD, Backbone
from align.types import Experience, Rollout, Scores, TrainEngine

OWNER = {
    "logp_BT": ACTOR, "entropy_BT": ACTOR, "ref_logp_BT": REFERENCE, "value_BT": CRITIC, "reward_BK": REWARD,
}  # fmt: skip
"""Whose each field of Scores is; `reward` stands for every reward model."""


@dataclass
class Group:
    backbone: Backbone
    engine: TrainEngine
    trained: tuple[str, ...] = ()
    """The roles that train; the others only compute."""
    waiting: set[str] = field(default_factory=set)
    """The roles with a gradient that waits for a step."""

    def width(self, roles: Iterable[str]) -> int:
        """Rows that a pass for `roles` computes for each row it is given: one for each adapter."""
        passes = self.backbone.passes(roles)
        return max((len({self.backbone.adapters[role] for role in together}) for together in passes), default=1)

    def scores(self, rollout: Rollout, roles: Iterable[str]) -> dict[str, Tensor]:
        """Scores of a rollout by those of `roles` that are here, by field of Scores."""
        found: dict[str, Tensor] = {}
        for together in self.backbone.passes(roles):
            with self.backbone.serving(together, len(rollout)):
                for name, value in self._forward(rollout, together).items():  # of rewards, a pass may give some columns
                    found[name] = torch.cat([found[name], value], 1) if name in found else value
        return found

    def train(
        self, micro: Experience, loss: Callable[[Scores], dict[str, Tensor]], last: bool, roles: Iterable[str]
    ) -> None:
        """Forward, the losses of those of `roles` that train here, and one backward pass of their sum."""
        wanted = set(roles) & set(self.trained)
        if not wanted:
            return
        passes = self.backbone.passes(self.trained if self.engine.sharded else wanted)
        for number, together in enumerate(passes, start=1):
            with self.backbone.serving(together, len(micro)):
                found = self._forward(micro.rollout, together)
                losses = loss(Scores(**{name: value for name, value in found.items() if OWNER[name] in wanted}))
                total = sum(losses.values())
                # sharded optimizers move a parameter that has no gradient by its last one (DeepSpeed 0.19)
                resting = [found[name] for name in found if OWNER[name] not in wanted and found[name].requires_grad]
                total = total + sum(0.0 * output.sum() for output in resting)
                if last and (extra := self.backbone.extra_loss(wanted & set(together))) is not None:
                    total = total + extra
                self.engine.backward(total, last and number == len(passes))
        self.waiting |= wanted

    def step(self) -> dict[str, float]:
        """An optimizer step if a gradient waits for one; gradient norms before clipping, by role."""
        if not self.waiting:
            return {}
        rates = self.engine.rates()
        resting = rates.keys() - self.waiting if self.engine.sharded else set()
        self.waiting = set()
        for role in resting:  # its gradient is 0, its momentum is not
            self.engine.set_rate(role, 0.0)
        try:
            return self.engine.step()
        finally:
            for role in resting:
                self.engine.set_rate(role, rates[role])

    def check(self) -> None:
        """Raises NotFinite for a gradient that is not finite, where that is known before a step."""
        if self.waiting:
            self.engine.check()

    def clear(self) -> None:
        """Drops the gradients that wait for a step."""
        self.waiting = set()
        if self.trained:
            self.engine.clear()

    def _forward(self, rollout: Rollout, roles: tuple[str, ...]) -> dict[str, Tensor]:
        length = rollout.response_ids_BT.shape[1]
        return self.engine.forward(rollout.input_ids_BN(), rollout.mask_BN(), length, rollout.temperature, roles)
