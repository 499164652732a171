"""Roles on one backbone under one training engine.

Shapes: B rows, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from align.roles.backbone import ACTOR, CRITIC, REFERENCE, REWARD, Backbone
from align.types import Experience, Rollout, Scores, TrainEngine

OWNER = {
    "logp_BT": ACTOR, "entropy_BT": ACTOR, "ref_logp_BT": REFERENCE, "value_BT": CRITIC, "reward_B": REWARD,
}  # fmt: skip
"""Whose each field of Scores is."""


@dataclass
class Group:
    backbone: Backbone
    engine: TrainEngine
    trained: tuple[str, ...] = ()
    """The roles that train; the others only compute."""
    stepped: bool = True
    """No gradient waits for a step."""

    def scores(self, rollout: Rollout, roles: Iterable[str]) -> dict[str, Tensor]:
        """What those of `roles` that are here say of a rollout, by field of Scores."""
        found: dict[str, Tensor] = {}
        for together in self.backbone.passes(roles):
            with self.backbone.serving(together, len(rollout)):
                found |= self._forward(rollout, together)
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
                self.engine.backward(total, last and number == len(passes))
        self.stepped = False

    def step(self) -> dict[str, float]:
        """An optimizer step if a gradient waits for one; gradient norms before clipping, by role."""
        if self.stepped:
            return {}
        self.stepped = True
        return self.engine.step()

    def _forward(self, rollout: Rollout, roles: tuple[str, ...]) -> dict[str, Tensor]:
        length = rollout.response_ids_BT.shape[1]
        return self.engine.forward(rollout.input_ids_BN(), rollout.mask_BN(), length, rollout.temperature, roles)
