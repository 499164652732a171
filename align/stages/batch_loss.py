"""Changes to the loss that a trainer of transformers computes of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Trainer

Change = Callable[[Tensor, dict[str, Any], Any], Tensor]
"""change(loss, inputs, num_items_in_batch) -> loss; `inputs` are the batch as the trainer was given it."""


def change_loss(trainer: Trainer, change: Change) -> None:
    """Pass each loss of the trainer, in training and in evaluation, through `change`, the latest added last."""
    plain_loss = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        given = dict(inputs)  # TRL's trainers take entries out
        found = plain_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        if return_outputs:
            return change(found[0], given, num_items_in_batch), found[1]
        return change(found, given, num_items_in_batch)

    trainer.compute_loss = compute_loss
