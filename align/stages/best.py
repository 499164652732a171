"""The adapter of the best evaluation, kept as it was; transformers loads whole models alone from its checkpoints.

PEFT's checkpoints do not load into a model that trains where they hold less than trains, or other shapes (P-tuning and
prompt tuning, prefixes, AdaLoRA; huggingface/peft #2256).
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments


class BestAdapter(TrainerCallback):
    """Hold what the adapter is at the evaluation with the best `metric_for_best_model`, in the CPU's memory."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.best: float | None = None
        self.kept: dict[str, Tensor] = {}

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: Any, metrics: dict[str, float], **more: Any
    ) -> None:
        value = metrics.get(f"eval_{args.metric_for_best_model.removeprefix('eval_')}")
        if value is None:  # of another task's rows
            return
        if self.best is None or (value > self.best if args.greater_is_better else value < self.best):
            self.best = value
            self.kept = {name: p.detach().to("cpu", copy=True) for name, p in self._adapter()}

    @torch.no_grad()
    def restore(self) -> None:
        """Let the model be as it was then."""
        for name, parameter in self._adapter():
            if name in self.kept:
                parameter.copy_(self.kept[name])

    def _adapter(self) -> list[tuple[str, Tensor]]:
        """Parameters that train, and those that a method moves by itself, such as the ranks of AdaLoRA."""
        names = set(self.model.peft_config)
        return [
            (name, p) for name, p in self.model.named_parameters() if p.requires_grad or names & set(name.split("."))
        ]


def keep_best(trainer: Any) -> BestAdapter | None:
    """The trainer's best adapter, to restore after training; None where the last is wanted, or all weights train."""
    if not trainer.args.load_best_model_at_end or not isinstance(trainer.model, PeftModel):
        return None
    trainer.args.load_best_model_at_end = False  # the trainer's own way
    best = BestAdapter(trainer.model)
    trainer.add_callback(best)
    return best
