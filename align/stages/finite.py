"""The end of a training at the first loss, gradient, weight or figure that is not finite, before anything is saved.

One mechanism for pretraining, TRL's trainers and adapters side by side; PPO's is in align.engine and align.ppo.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainerCallback, TrainerState

from align import ops
from align.errors import AlignError
from align.stages.batch_loss import change_loss

HELD_OUT = " of held-out rows"


@dataclass
class Guard:
    """Checks of a stage's training, by the stage's name; each raises AlignError with the step and the place."""

    stage: str
    model: nn.Module
    instead: str
    """Setting that makes the steps smaller."""

    def loss(self, loss: Tensor | float, step: int, where: str = "") -> None:
        """`step` is the optimizer step, from 1, that the loss is of, or that held-out rows come after."""
        value = loss.item() if isinstance(loss, Tensor) else loss
        if not math.isfinite(value):
            raise self._error(f"the loss{where} is {value}", step, moved=step > 1 or where == HELD_OUT)

    def gradients(self, step: int) -> None:
        """The gradients that wait for optimizer step `step`."""
        found = [(name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None]
        if get_total_norm([gradient for _, gradient in found]).isfinite():  # one number to wait for, not one a tensor
            return
        if name := ops.first_not_finite(found):
            raise self._error(f"the gradient of {name} is not finite", step, moved=step > 1)

    def weights(self, step: int) -> None:
        """The weights after optimizer step `step`, before they are saved."""
        trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        if name := ops.first_not_finite(trained):
            raise self._error(f"the weights in {name} are not finite", step)

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Figures of a log; what is no number passes."""
        for name, value in figures.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise self._error(f"{name} is {value}", step)

    def _error(self, problem: str, step: int, moved: bool = True) -> AlignError:
        """`moved`: an optimizer step has been taken."""
        broken = ops.first_not_finite(self.model.named_parameters())
        if broken and not moved:
            cause = f"; {broken} of the model that it starts from is not finite"
            instead = "use a model whose weights are finite"
        elif broken:
            cause, instead = f"; {broken} is not finite, the training has diverged", f"use {self.instead}"
        else:
            cause = "; the weights are finite"
            instead = f"use {self.instead}, or look at the settings of the loss and at the rows of {self.stage}.data"
        return AlignError(f"{self.stage}, step {step}: {problem}{cause}; nothing is saved\n  {instead}")


class GradientCheck(TrainerCallback):
    """Raise AlignError before an optimizer step whose gradients are not finite."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **more: Any) -> None:
        self.guard.gradients(state.global_step + 1)


def guard_trainer(trainer: Trainer, guard: Guard) -> None:
    """Check each loss, in training and on held-out rows, the gradients of each step and weights that are saved."""
    plain_save = trainer.save_model

    def checked(loss: Tensor, inputs: dict[str, Any], items: Any) -> Tensor:
        done, trains = trainer.state.global_step, trainer.model.training
        guard.loss(loss, done + 1 if trains else done, "" if trains else HELD_OUT)
        return loss

    def save_model(output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        guard.weights(trainer.state.global_step)
        plain_save(output_dir, _internal_call)

    change_loss(trainer, checked)
    trainer.save_model = save_model
    trainer.add_callback(GradientCheck(guard))
