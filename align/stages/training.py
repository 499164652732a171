"""Settings, logs and checks shared by the stages that TRL trains."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import datasets
import torch
from peft import PeftConfig, PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from align.data.mixture import by_task
from align.errors import AlignError
from align.peft.stateful import extra_loss, on_step
from align.report.report import StageReport
from align.roles.folder import CAUSAL
from align.roles.loading import look
from align.roles.modules import has_router
from align.roles.start import check_adapter
from align.roles.tokenizer import load_tokenizer
from align.stages.batch_loss import change_loss
from align.stages.best import keep_best
from align.stages.finite import Guard, guard_trainer
from align.stages.held_out import weigh_batches


def arguments(
    cls: type[TrainingArguments], key: str, options: Any, out: Path, seed: int, device: torch.device, dtype: torch.dtype
) -> Any:
    """TRL's config from our options, with `args` on top; batches are rows an optimizer step."""
    ours = {
        "output_dir": str(out / "trainer"),
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.epochs,
        "max_length": options.max_length,
        "per_device_train_batch_size": (rows := micro_batch(key, options)),
        "per_device_eval_batch_size": rows,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "bf16": dtype == torch.bfloat16,
        "use_cpu": device.type == "cpu",
        "gradient_checkpointing": device.type != "cpu",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type != "cpu",
        "seed": seed,
    }
    setting = f"{key}.args.load_best_model_at_end=true"
    if getattr(options, "early_stopping", None):
        setting = f"{key}.early_stopping={options.early_stopping}"
        ours |= {"eval_strategy": "epoch", "save_strategy": options.args.get("eval_strategy", "epoch")}
        ours |= {"save_total_limit": 1, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    settings = {**ours, **options.args.plain()}
    check_best(settings, setting, key)
    if settings.get("load_best_model_at_end"):  # each evaluation is saved: transformers saves every 500 steps
        settings = {"save_steps": settings.get("eval_steps") or settings["logging_steps"], **settings}
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AlignError(f"{key}.args: trl.{cls.__name__} refuses them: {reason}") from error


def micro_batch(key: str, options: Any) -> int:
    """Rows of a micro-batch: `batch_size` is rows an optimizer step. Raises AlignError where it cannot be divided."""
    size, count = options.batch_size, options.args.get("gradient_accumulation_steps", 1)
    if count < 1:
        raise AlignError(f"{key}.args.gradient_accumulation_steps={count}: use a whole number from 1")
    if size % count:
        near = max(round(size / count), 1) * count
        raise AlignError(
            f"{key}.args.gradient_accumulation_steps={count} does not divide {key}.batch_size={size}, the rows of an "
            f"optimizer step\n  use {key}.batch_size={near}"
        )
    return size // count


def weigh_micro_batches(trainer: Trainer) -> None:
    """Let micro-batches count by their rows, as in one large batch: transformers (5.19) counts a smaller last one as
    the others where the loss is a mean over rows."""
    plain_samples = trainer.get_batch_samples
    sizes: list[int] = []

    def get_batch_samples(batches: Iterator, count: int, device: torch.device) -> tuple[list, Any]:
        found, items = plain_samples(batches, count, device)
        sizes[:] = [_rows_of(batch) for batch in found]
        return found, items

    def weighed(loss: Tensor, inputs: dict[str, Any], items: Any) -> Tensor:
        if not trainer.model.training or len(set(sizes)) < 2:
            return loss
        return loss * (_rows_of(inputs) * len(sizes) / sum(sizes))

    trainer.get_batch_samples = get_batch_samples
    change_loss(trainer, weighed)


def _rows_of(batch: Mapping[str, Any]) -> int:
    """Rows, or twice the pairs, of a batch; completions of a ranking are one row."""
    return len(batch["target"] if "target" in batch else batch["input_ids"])


def loraplus(model: PeftModel, args: TrainingArguments, ratio: float | None) -> torch.optim.Optimizer | None:
    """The trainer's optimizer with LoRA+'s rates; None, for its own, where no ratio is given.

    LoRA's B learns at `ratio` times the rate. LoRA on an embedding learns at the rate itself, as in PPO.
    """
    if ratio is None:
        return None
    optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    settings = {name: value for name, value in settings.items() if name not in ("lr", "fused")}
    return create_loraplus_optimizer(
        model, optimizer, lr=args.learning_rate, loraplus_lr_ratio=ratio, loraplus_lr_embedding=args.learning_rate,
        loraplus_weight_decay=args.weight_decay, **settings,
    )  # fmt: skip


@contextmanager
def dtypes_kept(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Keep the tensors of parameters that train: TRL (1.16) rounds an adapter on quantised weights to bfloat16."""
    before = [(p, p.data) for p in model.parameters() if p.requires_grad]
    yield
    for parameter, data in before:
        parameter.data = data


def warm_up_from_the_first_step(trainer: Trainer) -> None:
    """Let the trainer's warm-up begin above 0, as PPO's does: transformers (5.19) gives the first step the rate 0.

    Step `n` (from 0) of `w` takes the place (n + 1) / (w + 1) of the way up; later steps are transformers' own.
    """
    plain_scheduler = trainer.create_scheduler

    def create_scheduler(num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        scheduler = plain_scheduler(num_training_steps, optimizer)
        steps = trainer.args.get_warmup_steps(num_training_steps)
        if isinstance(scheduler, LambdaLR) and steps and scheduler.lr_lambdas[0](0) == 0:
            scheduler.lr_lambdas = [partial(_warmed, rate, steps) for rate in scheduler.lr_lambdas]
            first = [peak * rate(0) for peak, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
            for group, rate in zip(scheduler.optimizer.param_groups, first, strict=True):
                group["lr"] = rate
            scheduler._last_lr = first
        return scheduler

    trainer.create_scheduler = create_scheduler


def _warmed(rate: Callable[[float], float], steps: int, step: int) -> float:
    return rate((step + 1) * steps / (steps + 1) if step < steps else step)


class Callback(TrainerCallback):
    """Hand the trainer's logs to the stage's report, and each optimizer step, with its gradients, to the method."""

    def __init__(self, report: StageReport, tell: Callable[[int, str], None], guard: Guard) -> None:
        self.report = report
        self.tell = tell
        self.guard = guard

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict | None = None, **more: Any) -> None:
        values = {name: value for name, value in (logs or {}).items() if name != "epoch"}
        self.report.metrics(state.global_step, values)
        self.guard.figures(values, state.global_step)
        if "loss" in values:
            accuracy = f"  accuracy {float(values['accuracy']):.3f}" if "accuracy" in values else ""
            self.tell(state.global_step, f"loss {float(values['loss']):.3f}{accuracy}")

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **more: Any) -> None:
        on_step(self.guard.model, "default", state.global_step + 1)


def add_extra_loss(trainer: Trainer) -> None:
    """Add the loss of the adapter's method to the trainer's, once an optimizer step; not in evaluation."""

    def with_extra(loss: Tensor, inputs: dict[str, Any], items: Any) -> Tensor:
        extra = extra_loss(trainer.model, "default") if trainer.model.training else None
        if extra is None:
            return loss
        # where the items are known, the trainer does not divide
        return loss + (extra if items is None else extra / trainer.current_gradient_accumulation_steps)

    change_loss(trainer, with_extra)


def check_start(
    path: str, role: str, peft: PeftConfig | None, adapter: str, kinds: tuple[str, ...] = (CAUSAL,)
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that a role starts from. Raises AlignError where the role cannot start from it."""
    check_adapter(look(path, role, kinds), role, peft, adapter)
    return load_tokenizer(path, f"{role}.path")


def steps_of(args: TrainingArguments, rows: int) -> int:
    """Optimizer steps that training on `rows` makes, on one device."""
    return steps_of_batches(args, math.ceil(rows / args.per_device_train_batch_size))


def steps_of_batches(args: TrainingArguments, batches: int) -> int:
    """Optimizer steps of as many batches an epoch."""
    an_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    return args.max_steps if args.max_steps > 0 else math.ceil(an_epoch * args.num_train_epochs)


def train(trainer: Trainer, report: StageReport) -> None:
    """Train, with the stage's progress bar and metrics in the place of TRL's own."""
    trainer.remove_callback(PrinterCallback)
    args = trainer.args
    warm_up_from_the_first_step(trainer)
    if not isinstance(trainer, SFTTrainer):
        weigh_micro_batches(trainer)
    add_extra_loss(trainer)
    if isinstance(trainer, SFTTrainer | RewardTrainer | DPOTrainer | KTOTrainer):
        weigh_batches(trainer)
    tell_size(trainer.model, report, trainer.router_aux_loss_coef if getattr(trainer, "aux_loss_enabled", False) else 0)
    guard = guard_of(trainer.model, report)
    guard_trainer(trainer, guard)
    with report.steps(steps_of_batches(args, len(trainer.get_train_dataloader()))) as tell:
        trainer.add_callback(Callback(report, tell, guard))
        best = keep_best(trainer)
        trainer.train()
    if best:
        best.restore()
    guard.weights(trainer.state.global_step)
    trainer.model.eval()
    remove_if_empty(Path(args.output_dir))


def tell_size(model: PreTrainedModel | PeftModel, report: StageReport, router_loss: float = 0) -> None:
    """A line on the parameters that train, and on the weight of a router's loss; both in card.json."""
    if isinstance(model, PeftModel):
        trained, whole = model.get_nb_trainable_parameters()
    else:
        trained, whole = model.num_parameters(only_trainable=True), model.num_parameters()
    facts = {"router_loss": float(router_loss)} if has_router(model) else {}
    router = f"; the loss of the experts' router counts {router_loss:g}" if facts else ""
    report.say(f"{trained:,} of {whole:,} parameters train{router}")
    report.write_card(parameters=whole, trained_parameters=trained, **facts)


def guard_of(model: Any, report: StageReport) -> Guard:
    """The checks of a stage's training."""
    stage = report.name.split("/")[0]  # a member of several reports as rm/member_1
    return Guard(stage, model, f"a lower {stage}.learning_rate")


def remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):  # no checkpoint was saved
        folder.rmdir()


def dataset(rows: list[dict]) -> datasets.Dataset:
    """Rows as a data set in memory; a key that some rows' messages lack is not added to them."""
    datasets.disable_progress_bars()
    return datasets.Dataset.from_list(rows, on_mixed_types="use_json")


OURS = {
    "learning_rate": "{key}.learning_rate", "num_train_epochs": "{key}.epochs", "max_length": "{key}.max_length",
    "per_device_train_batch_size": "{key}.batch_size", "output_dir": "the run's folder", "seed": "seed",
}  # fmt: skip
EVALUATES = ("steps", "epoch")
REPORTED: dict[type[TrainingArguments], tuple[str, ...]] = {
    SFTConfig: ("loss", "entropy", "mean_token_accuracy", "aux_loss"),
    RewardConfig: ("loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"),
    DPOConfig: (
        "loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen",
        "logps/rejected", "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy", "aux_loss",
    ),
    KTOConfig: (
        "loss", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected",
        "logits/chosen", "logits/rejected", "kl", "entropy", "aux_loss",
    ),
}  # fmt: skip
"""Figures of held-out rows that TRL's trainers (1.16) report, each behind `eval_`."""


def check_arguments(
    cls: type[TrainingArguments], given: dict[str, Any], key: str, more: Mapping[str, str] | None = None
) -> None:
    """Raise AlignError for arguments that TRL's config class does not have, for those of OURS and `more`, which have
    another name here, and for values that are no switch or number where there must be one."""
    ours = OURS | {name: f"{key}.{own}" for name, own in (more or {}).items()}
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    types = get_type_hints(cls)
    for name, value in given.items():
        if name in ours:
            raise AlignError(f"{key}.args.{name} is set by {ours[name].format(key=key)}: use that instead")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise AlignError(
                f"{key}.args.{name}: {cls.__module__.split('.')[0]}.{cls.__name__} has no such argument\n"
                f"  nearest: {', '.join(near) or 'none'}"
            )
        if wanted := _instead(types[name], value):
            shown = value if isinstance(value, str) else json.dumps(value)
            raise AlignError(f"{key}.args.{name}={shown}: use {wanted}")


def _instead(annotation: Any, value: Any) -> str | None:
    """Value to use, in words, where one is not of its field's type; None where it is, or if several types serve.

    Hydra reads `no` and `off` as strings, which Python takes for true.
    """
    types = set(get_args(annotation) or [annotation])
    if value is None and type(None) in types:
        return None
    match [one for one in types if one is not type(None)]:
        case [one] if one is bool and not isinstance(value, bool):
            return "true or false"
        case [one] if one is int and (isinstance(value, bool) or not isinstance(value, int)):
            return "a whole number"
        case [one] if one is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            return "a number"
    return None


def check_best(settings: dict[str, Any], setting: str, key: str) -> None:
    """Raise AlignError where `load_best_model_at_end`, by `setting`, has no saved evaluations to choose among."""
    evaluated, saved = (settings.get(name, "no") for name in ("eval_strategy", "save_strategy"))
    if not settings.get("load_best_model_at_end") or (evaluated in EVALUATES and saved in (evaluated, "best")):
        return
    when = next((one for one in (evaluated, saved) if one in EVALUATES), "epoch")
    raise AlignError(
        f"{setting}: the best is of the evaluations that are saved, and with eval_strategy={evaluated} and "
        f"save_strategy={saved} there are none\n"
        f"  use +{key}.args.eval_strategy={when} +{key}.args.save_strategy={when}, or leave it out"
    )


def check_metric(args: TrainingArguments, key: str, tasks: Iterable[str] = ()) -> None:
    """Raise AlignError where `metric_for_best_model` is no figure of held-out rows; each of `tasks` has its own."""
    if (figure := args.metric_for_best_model) is None:
        if args.save_strategy == "best":
            raise AlignError(
                f"{key}.args.save_strategy=best: by which figure?\n  use +{key}.args.metric_for_best_model=eval_loss"
            )
        return
    parts = [f"eval_{task}" for task in tasks] or ["eval"]
    known = [f"{part}_{name}" for part in parts for name in REPORTED[type(args)]]
    name = figure if figure.startswith("eval_") else f"eval_{figure}"
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0)
        raise AlignError(
            f"{key}.args.metric_for_best_model={figure}: {key} has no figure of held-out rows by that name\n"
            f"  use another, nearest: {', '.join(near)}"
        )


def check_held_out(args: TrainingArguments, held_out: list, key: str) -> None:
    """Raise AlignError where `eval_strategy` asks for held-out rows and there are none."""
    if args.eval_strategy != "no" and not held_out:
        raise AlignError(
            f"{key}.args.eval_strategy={args.eval_strategy.value}: no rows are held out\n"
            f"  use {key}.data.eval_share=0.05, or leave it out"
        )


def tell_tasks(rows: list[dict], report: StageReport) -> None:
    """A line a task on how many of the rows are its own, and `tasks` in card.json; nothing for rows of no mixture."""
    counts = {name: len(own) for name, own in by_task(rows).items()}
    for name, count in counts.items():
        report.say(f"task {name}: {count} of {len(rows)} rows")
    if counts:
        report.write_card(tasks=counts)
