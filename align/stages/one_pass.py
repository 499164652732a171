"""Adapters of one frozen base trained together: each optimizer step takes the rows of all through one pass.

Every adapter has a TRL trainer of its own, which prepares its rows, draws its batches and makes its optimizer and
schedule as if it trained alone. Ours are the pass, the losses apart, the clipping and the steps.

Shapes: B rows, those of one adapter next to each other; T tokens of the longest; P = T - 1 predictions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from align.engine.lora import use_fast_loras
from align.errors import AlignError
from align.peft.add import kept_trainable, trained_of
from align.peft.switch import routed
from align.report.report import StageReport
from align.stages.trl_bridge import loraplus, remove_if_empty, steps_of_batches

IGNORED = -100
"""transformers' label of what is not learned."""
FILL = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}

Batches = list[tuple[dict[str, Tensor], Tensor]]
"""The micro-batches of an optimizer step, each with what TRL divides its sum of losses by."""


@dataclass
class Learner:
    """One adapter with its trainer; `seat` is the adapter's name in the model, `name` what the report calls it."""

    name: str
    seat: str
    trainer: SFTTrainer
    parameters: list[nn.Parameter]
    steps: int
    batches: Iterator[Batches]

    def update(self) -> dict[str, float]:
        """Clips the adapter's gradients alone, takes its optimizer's step and its schedule's."""
        trainer, limit = self.trainer, self.trainer.args.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, limit if limit > 0 else math.inf)
        rate = trainer.lr_scheduler.get_last_lr()[0]
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        return {"grad_norm": float(norm), "learning_rate": rate}


def learner(
    model: PeftModel, name: str, seat: str, trainer: SFTTrainer, loraplus_lr_ratio: float | None, key: str
) -> Learner:
    """Gives the trainer, of stage `key`, an optimizer of adapter `seat` alone, its schedule and its order of rows.

    Raises AlignError for a mixture of experts whose balance is part of the loss: it is one for all rows.
    """
    if trainer.aux_loss_enabled:
        raise AlignError(
            f"{key}: the experts' balance is one for all rows, and adapters side by side have losses of their own\n"
            f"  write {key}.args.router_aux_loss_coef=0, or {key}.parallel_adapters=1"
        )
    trainer.remove_callback(PrinterCallback)
    torch.manual_seed(trainer.args.seed)  # accelerate's sampler takes it for its own
    loader = trainer.get_train_dataloader()
    steps = steps_of_batches(trainer.args, len(loader))
    parameters = trained_of(model, seat)
    own = {id(parameter) for parameter in parameters}
    with kept_trainable(model):
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
        trainer.optimizer = loraplus(model, trainer.args, loraplus_lr_ratio)
        trainer.create_optimizer_and_scheduler(steps)
    return Learner(name, seat, trainer, parameters, steps, _batches(trainer, loader))


def _batches(trainer: SFTTrainer, loader: torch.utils.data.DataLoader) -> Iterator[Batches]:
    """What each optimizer step takes, epoch after epoch, without an end."""
    wanted = trainer.args.gradient_accumulation_steps
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        rows = iter(loader)
        for first in range(0, len(loader), wanted):
            count = min(wanted, len(loader) - first)
            found, labels = trainer.get_batch_samples(rows, count, trainer.args.device)
            yield [(batch, count * _labelled(batch) if labels is None else labels) for batch in found]


def _labelled(batch: dict[str, Tensor]) -> Tensor:
    return batch["labels"][:, 1:].ne(IGNORED).sum()


def train_together(model: PeftModel, learners: list[Learner], report: StageReport) -> None:
    """Trains until the last is done; each takes the steps, with the batches, that it would take alone."""
    use_fast_loras(model)
    if learners[0].trainer.args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    total = max(one.steps for one in learners)
    with report.steps(total) as tell:
        for step in range(1, total + 1):
            found = _step(model, [one for one in learners if step <= one.steps])
            report.metrics(step, {f"{name}/{key}": v for name, values in found.items() for key, v in values.items()})
            tell(step, "loss " + " ".join(f"{values['loss']:.3f}" for values in found.values()))
    model.eval()
    remove_if_empty(Path(learners[0].trainer.args.output_dir))


def _step(model: PeftModel, learners: list[Learner]) -> dict[str, dict[str, float]]:
    """One optimizer step of each; its figures by the adapter's name."""
    taken = [next(one.batches) for one in learners]
    figures = {one.name: torch.zeros(3) for one in learners}
    for micro in itertools.zip_longest(*taken):
        there = [(one, *part) for one, part in zip(learners, micro, strict=True) if part is not None]
        for (one, _, _), values in zip(there, _pass(model, there), strict=True):
            figures[one.name] += values
    found = {}
    for one in learners:
        loss, right, labelled = figures[one.name].tolist()
        found[one.name] = {"loss": loss, **one.update(), "mean_token_accuracy": right / max(labelled, 1)}
    model.zero_grad()
    return found


def _pass(model: PeftModel, parts: list[tuple[Learner, dict[str, Tensor], Tensor]]) -> list[Tensor]:
    """Forward and backward for a batch of each adapter: its loss, tokens that came first, tokens with a label."""
    rows = [len(batch["labels"]) for _, batch, _ in parts]
    seats = [one.seat for (one, _, _), count in zip(parts, rows, strict=True) for _ in range(count)]
    args = parts[0][0].trainer.args
    with routed(model, seats):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            out = model(**joined([batch for _, batch, _ in parts]), use_cache=False, fused_lm_head=True)
        nll_B = -out.log_probs.sum(1)  # zero where there is no label
        losses = [own.sum() / labels.clamp(min=1) for own, (_, _, labels) in zip(nll_B.split(rows), parts, strict=True)]
        torch.stack(losses).sum().backward()
    counted_B = [figure_BP.sum(1).split(rows) for figure_BP in (out.is_top1, out.label_mask)]
    return [
        torch.stack([loss.detach(), right.sum(), labelled.sum()]).float().cpu()
        for loss, right, labelled in zip(losses, *counted_B, strict=True)
    ]


def joined(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The batches' rows under each other, padded on the right to the longest."""
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    return {
        name: torch.cat([pad(batch[name], (0, longest - batch[name].shape[1]), value=fill) for batch in batches])
        for name, fill in FILL.items()
    }
