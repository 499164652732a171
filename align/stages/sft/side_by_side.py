"""Adapters that fine-tuning trains side by side, and checks before a model loads of those that cannot."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from align.data.source import Source
from align.engine.lora import use_fast_loras
from align.errors import AlignError
from align.peft.adapters import kept_trainable, routed, routes_rows, trained_of
from align.peft.routes import changes_the_base
from align.peft.stateful import NONE, hooks_of
from align.report.report import StageReport
from align.roles.folder import CAUSAL
from align.roles.loading import for_task
from align.stages.finite import Guard
from align.stages.held_out import weigh_batches
from align.stages.sft.spec import SFTOptions
from align.stages.training import (
    guard_of,
    loraplus,
    remove_if_empty,
    steps_of_batches,
    tell_size,
    warm_up_from_the_first_step,
)

SEEDS = 2**32
ARGS = {
    "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "max_steps", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "gradient_accumulation_steps", "gradient_checkpointing",
    "per_device_eval_batch_size", "completion_only_loss", "assistant_only_loss", "pad_to_multiple_of", "pad_token",
    "eos_token", "dataset_num_proc", "dataset_text_field", "data_seed", "dataloader_drop_last", "router_aux_loss_coef",
}  # fmt: skip
"""Arguments of SFTConfig that mean the same for adapters side by side."""
NEEDS_LOSS = ("reduce_lr_on_plateau", "greedy")
"""Schedules that are led by evaluation."""


@dataclass
class Member:
    """One adapter: the settings that a separate run of it would have."""

    options: SFTOptions
    data: Source
    seed: int
    differs: str
    """Settings that it alone has, in words."""


def members(options: SFTOptions, data: Source | list[Source], seed: int, key: str) -> list[Member]:
    """The adapters that stage `key` trains; one without such a setting. Raises AlignError where counts disagree.

    Rates and sources that are listed go together, first with first, and share the seed; without a list it is the
    seeds that differ.
    """
    rates, sources = _listed(options.learning_rate), _listed(data)
    lengths = {f"{key}.learning_rate": len(rates), f"{key}.data.path": len(sources)}
    many = {name: length for name, length in lengths.items() if length > 1}
    count = options.parallel_adapters or max(lengths.values())
    for name, length in many.items():
        if length != count:
            other = next((f"{k} lists {n}" for k, n in many.items() if n == count), f"{key}.parallel_adapters={count}")
            raise AlignError(f"{name} lists {length}, but {other}\n  use as many, and {key}.parallel_adapters=null")
    if not many:
        check_seeds(f"{key}.parallel_adapters", count, seed)
    found = []
    for i in range(count):
        rate, source = rates[min(i, len(rates) - 1)], sources[min(i, len(sources) - 1)]
        words = [f"learning_rate {rate:g}"] if len(rates) > 1 else []
        words += [str(source.path)] if len(sources) > 1 else []
        own = seed if many else seed + i
        one = dataclasses.replace(options, learning_rate=rate, parallel_adapters=1)
        found.append(Member(one, source, own, ", ".join(words) or f"seed {own}"))
    return found


def check_seeds(key: str, count: int, seed: int) -> None:
    """Raise AlignError where there are fewer than `count` seeds from `seed` on; `key` is the setting of `count`."""
    if seed + count > SEEDS:
        raise AlignError(f"{key}={count}: seeds end at {SEEDS - 1}\n  use seed={SEEDS - count}")


def check_method(options: SFTOptions, found: list[Member], method: PeftConfig | None, key: str) -> None:
    """Raise AlignError for a method, or an argument of TRL's, that does not go with adapters side by side."""
    together = f"{len(found)} adapters side by side"
    turns = f"one after the other: {alone(options, found, key)}"
    if why := why_not(method):
        raise AlignError(
            f"{key}.peft: {together} need one frozen base, and {why}\n  use peft@{key}.peft=lora, or {turns}"
        )
    for name in sorted(options.args.keys() - ARGS):
        raise AlignError(f"{key}.args.{name} is not for {together}\n  leave it out, or train them {turns}")
    if (kind := options.args.get("lr_scheduler_type")) in NEEDS_LOSS:
        raise AlignError(f"{key}.args.lr_scheduler_type={kind} is not for {together}\n  use cosine, linear or constant")


def check_run(args: Any, found: list[Member], key: str) -> None:
    """Raise AlignError without held-out rows to choose by, and for several processes."""
    for one in {id(member.data): member for member in found}.values():
        if not one.data.load(key, one.seed).eval:
            raise AlignError(
                f"{key}.data: no rows are held out ({one.differs}), and they choose the best of {len(found)} adapters\n"
                f"  use {key}.data.eval_share=0.05, or {key}.data.eval_path=FILE"
            )
    if args.world_size > 1:
        raise AlignError(
            f"{key}: {len(found)} adapters side by side take one process\n  start align without a launcher"
        )


def why_not(method: PeftConfig | None) -> str:
    """Reason why adapters of this method cannot train in one pass; '' where they can."""
    if method is None:
        return "without a method all weights train"
    kind = method.peft_type.value
    if hooks_of(method) is not NONE:
        return f"{kind} changes its adapter between steps, one a model"
    if not routes_rows(method):
        what = f"this {kind} (DoRA, target_parameters, tokens)" if type(method) is LoraConfig else kind
        return f"PEFT cannot send the rows of a batch through different adapters of {what}"
    if changes_the_base(method):
        return f"init_lora_weights={method.init_lora_weights} takes a part out of it"
    if saved := for_task(method, CAUSAL, "").modules_to_save:
        return f"modules_to_save={saved} trains modules of it"
    if type(method) is not LoraConfig:
        return ""
    if method.bias != "none":
        return f"bias={method.bias} trains its biases"
    if method.layer_replication:
        return "layer_replication makes more layers"
    return next((f"PEFT does not send rows through LoRA with {name}" for name in _variants(method)), "")


def _variants(lora: LoraConfig) -> list[str]:
    """The settings that give LoRA's layers another forward, as PEFT's config marks them."""
    starts = lora.__dataclass_fields__["init_lora_weights"].metadata["lora_variants"]
    found = [f.name for f in dataclasses.fields(lora) if f.metadata.get("is_lora_variant") and getattr(lora, f.name)]
    return found + [f"init_lora_weights={lora.init_lora_weights}"] * (lora.init_lora_weights in starts)


def alone(options: SFTOptions, found: list[Member], key: str) -> str:
    """Command or rule by which the adapters are trained in separate runs."""
    rates, paths = len(_listed(options.learning_rate)) > 1, len({id(one.data) for one in found}) > 1
    if rates and paths:
        return "one rate and one file a run"
    if rates:
        return f"align -m {key}.learning_rate={','.join(f'{one.options.learning_rate:g}' for one in found)}"
    if paths:
        return f"align -m {key}.data.path={','.join(str(one.data.path) for one in found)}"
    return f"align -m seed={','.join(str(one.seed) for one in found)}"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


IGNORED = -100
"""transformers' label of what is not learned."""
FILL = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}

Batches = list[tuple[dict[str, Tensor], Tensor]]
"""The micro-batches of an optimizer step, each with what TRL divides its sum of losses by."""


@dataclass
class Learner:
    """One adapter with its trainer; `adapter` is its name in the model, `name` that in the report."""

    name: str
    adapter: str
    trainer: SFTTrainer
    parameters: list[nn.Parameter]
    steps: int
    batches: Iterator[Batches]

    def update(self) -> dict[str, float]:
        """Clip the adapter's gradients alone, take its optimizer's step and its schedule's."""
        trainer, limit = self.trainer, self.trainer.args.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, limit if limit > 0 else math.inf)
        rate = trainer.lr_scheduler.get_last_lr()[0]
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        return {"grad_norm": float(norm), "learning_rate": rate}


def learner(
    model: PeftModel, name: str, adapter: str, trainer: SFTTrainer, loraplus_lr_ratio: float | None, key: str
) -> Learner:
    """Give the trainer, of stage `key`, an optimizer of `adapter` alone, its schedule and its order of rows.

    Raises AlignError for a mixture of experts whose balance is part of the loss: it is one for all rows.
    """
    if trainer.aux_loss_enabled:
        raise AlignError(
            f"{key}: the experts' balance is one for all rows, and each adapter side by side has another loss\n"
            f"  use {key}.args.router_aux_loss_coef=0, or {key}.parallel_adapters=1"
        )
    trainer.remove_callback(PrinterCallback)
    warm_up_from_the_first_step(trainer)
    weigh_batches(trainer)
    torch.manual_seed(trainer.args.seed)  # accelerate's sampler takes it for its own
    loader = trainer.get_train_dataloader()
    steps = steps_of_batches(trainer.args, len(loader))
    parameters = trained_of(model, adapter)
    own = {id(parameter) for parameter in parameters}
    with kept_trainable(model):
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
        trainer.optimizer = loraplus(model, trainer.args, loraplus_lr_ratio)
        trainer.create_optimizer_and_scheduler(steps)
    return Learner(name, adapter, trainer, parameters, steps, _batches(trainer, loader))


def _batches(trainer: SFTTrainer, loader: torch.utils.data.DataLoader) -> Iterator[Batches]:
    """Yield the batches of each optimizer step, epoch after epoch, without an end."""
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
    """Train until the last is done; each takes the steps, with the batches, that it would take alone."""
    use_fast_loras(model)
    if learners[0].trainer.args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    tell_size(model, report)
    total, guard = max(one.steps for one in learners), guard_of(model, report)
    with report.steps(total) as tell:
        for step in range(1, total + 1):
            found = _step(model, [one for one in learners if step <= one.steps], step, guard)
            figures = {f"{name}/{key}": v for name, values in found.items() for key, v in values.items()}
            report.metrics(step, figures)
            guard.figures(figures, step)
            tell(step, "loss " + " ".join(f"{values['loss']:.3f}" for values in found.values()))
    guard.weights(total)
    model.eval()
    remove_if_empty(Path(learners[0].trainer.args.output_dir))


def _step(model: PeftModel, learners: list[Learner], step: int, guard: Guard) -> dict[str, dict[str, float]]:
    """One optimizer step of each; its figures by the adapter's name."""
    taken = [next(one.batches) for one in learners]
    figures = {one.name: torch.zeros(3) for one in learners}
    for micro in itertools.zip_longest(*taken):
        there = [(one, *part) for one, part in zip(learners, micro, strict=True) if part is not None]
        for (one, _, _), values in zip(there, _pass(model, there), strict=True):
            guard.loss(values[0], step, f" of {one.name}")
            figures[one.name] += values
    guard.gradients(step)
    found = {}
    for one in learners:
        loss, right, labelled = figures[one.name].tolist()
        found[one.name] = {"loss": loss, **one.update(), "mean_token_accuracy": right / max(labelled, 1)}
    model.zero_grad()
    return found


def _pass(model: PeftModel, parts: list[tuple[Learner, dict[str, Tensor], Tensor]]) -> list[Tensor]:
    """Forward and backward for a batch of each adapter: its loss, tokens that came first, tokens with a label."""
    rows = [len(batch["labels"]) for _, batch, _ in parts]
    adapters = [one.adapter for (one, _, _), count in zip(parts, rows, strict=True) for _ in range(count)]
    args = parts[0][0].trainer.args
    with routed(model, adapters):
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
