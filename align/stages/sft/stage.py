"""Stage `sft`: supervised fine-tuning by TRL's SFTTrainer, in full or with a PEFT method.

align stages=[sft] model=FOLDER data@sft.data=prompt_completion sft.data.path=demos.jsonl

Several adapters at once, in one pass each step, by seed, rate or data set:

align stages=[sft] model=FOLDER sft.data.path=demos.jsonl sft.learning_rate=[1e-4,3e-4,1e-3]
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from align.data.encode import fitting_examples
from align.data.files import located, unwritten
from align.data.mixture import by_task
from align.data.source import Source, check_held_out
from align.data.tally import Tally
from align.engine.linear import give_kernel
from align.errors import AlignError
from align.peft.adapters import add_trained, use_adapter
from align.peft.folder import save_adapter, save_model
from align.peft.rates import check_loraplus, rate
from align.peft.stateful import NONE, hooks_of, planned
from align.plan.plan import StagePlan
from align.plan.runtime import Runtime
from align.report.report import StageReport
from align.roles.folder import CAUSAL
from align.roles.start import Start, start
from align.roles.tokenizer import load_tokenizer
from align.stages import training
from align.stages.sft.learned_turns import check_rows, check_template, learned_tokens, unlearned_end, with_template
from align.stages.sft.side_by_side import Member, check_method, check_run, learner, members, train_together
from align.stages.sft.spec import SFTOptions
from align.stages.training import train
from align.words import counted


@dataclass
class Task:
    """Rows and settings with which one adapter, or the whole model, is trained."""

    member: Member
    args: SFTConfig
    rows: list[dict]
    held_out: list[dict]
    tallies: tuple[Tally, ...]
    """Of the rows, and of those held out."""

    def trainer(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> SFTTrainer:
        tasks = {name: training.dataset(rows) for name, rows in by_task(self.held_out).items()}
        held_out = tasks or (training.dataset(self.held_out) if self.held_out else None)
        return SFTTrainer(
            model, self.args, train_dataset=training.dataset(self.rows), eval_dataset=held_out,
            processing_class=tokenizer,
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        tasks = {name: len(rows) for name, rows in by_task(self.rows).items()}
        return {"rows": len(self.rows), **({"tasks": tasks} if tasks else {})}

    def held_out_loss(self, trainer: SFTTrainer) -> dict[str, float]:
        """Nats a token on held-out rows: of each task, and of all those that are trained on."""
        found = trainer.evaluate()
        sizes = {name: found[f"eval_{name}_tokens"] for name in by_task(self.held_out)}
        if not sizes:
            return {"eval_loss": found["eval_loss"]}
        losses = {name: found[f"eval_{name}_loss"] for name in sizes}
        trained = {name: sizes[name] for name in by_task(self.rows) if name in sizes} or sizes
        mean = sum(losses[name] * size for name, size in trained.items()) / sum(trained.values())
        return {"eval_loss": mean, **{f"eval_loss_{name}": loss for name, loss in losses.items()}}


@dataclass
class SFT:
    options: SFTOptions
    data: Source | list[Source]
    """A list: an adapter for each."""
    peft: PeftConfig | None
    seed: int
    device: torch.device
    dtype: torch.dtype
    name: str = "sft"

    def check(self, inputs: dict[str, str]) -> None:
        training.check_arguments(SFTConfig, self.options.args.plain(), self.name)
        check_loraplus(self.options.loraplus_lr_ratio, self.peft, self.name)
        check_packing(self.options.args, self.peft, self.name)
        found = members(self.options, self.data, self.seed, self.name)
        if len(found) > 1:
            check_method(self.options, found, self.peft, self.name)
        args = self._arguments(found[0], Path("unused"))
        for source in {id(member.data): member.data for member in found}.values():
            source.check(self.name)
        if not unwritten(self.data):
            self._check_data(args, found)
        if "path" in inputs:
            training.check_start(inputs["path"], self.name, self.peft, self.options.adapter)
            check_template(self.options.args, inputs["path"], self.name)

    def _check_data(self, args: SFTConfig, found: list[Member]) -> None:
        if len(found) > 1:
            check_run(args, found, self.name)
        if self.options.early_stopping:
            check_early_stopping(found, self.name)
        masked = args.assistant_only_loss or args.completion_only_loss
        chosen = args.metric_for_best_model or args.save_strategy == "best"
        for one in found if masked or chosen or args.eval_strategy != "no" else []:
            split = one.data.load(self.name, one.seed)
            check_rows(self.options.args, split.train + split.eval, self.name)
            training.check_held_out(args, split.eval, self.name)
            training.check_metric(args, self.name, by_task(split.eval))

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        tokenizer = with_template(self.options.args, load_tokenizer(inputs["path"], f"{self.name}.path"), self.name)
        check_template(self.options.args, inputs["path"], self.name)  # of a model that this run has made
        found = members(self.options, located(self.data, inputs), self.seed, self.name)
        if unwritten(self.data):  # and written now
            self._check_data(self._arguments(found[0], out), found)
        tasks = [self._task(member, tokenizer, out) for member in found]
        report.tell(*(tally for task in tasks for tally in task.tallies))
        if warning := unlearned_end(self.options.args, tokenizer, self.name):
            report.say(warning)
        for task in tasks:
            training.check_held_out(task.args, task.held_out, self.name)
            if len(tasks) > 1 and not task.held_out:
                raise AlignError(
                    f"{self.name}.data: no held-out row is left, and they choose the best of {len(tasks)} adapters\n"
                    f"  use a larger {self.name}.data.eval_share, or a larger {self.name}.max_length"
                )
        first = tasks[0]
        method = planned(self.peft, training.steps_of(first.args, len(first.rows)), self.name)
        torch.manual_seed(found[0].seed)
        begun = start(
            inputs["path"], key=self.name, head=CAUSAL, peft=method, adapter=self.options.adapter, out=out,
            dtype=self.dtype, kinds=(CAUSAL,),
        )  # fmt: skip
        adapters = ["default", *(f"adapter_{i}" for i in range(1, len(tasks)))]
        for adapter, task in zip(adapters[1:], tasks[1:], strict=True):
            add_trained(begun.model, adapter, task.member.seed, begun.fresh)
        give_kernel(begun.model, report.say)
        training.tell_tasks(first.rows, report)
        sizes = dict.fromkeys(f"{counted(len(task.rows), 'row')}, {len(task.held_out)} held out" for task in tasks)
        together = f" ({len(tasks)} side by side)" if len(tasks) > 1 else ""
        report.say(f"{begun.description}{together}; {'; '.join(sizes)}")
        with training.dtypes_kept(begun.model):
            trainers = [task.trainer(begun.model, tokenizer) for task in tasks]
        facts = {"start": begun.description, "base": begun.base}
        if len(tasks) == 1:
            facts |= _train_one(trainers[0], first, begun, out, report)
            tokenizer.save_pretrained(out)
        else:
            facts |= _train_many(
                dict(zip(adapters, trainers, strict=True)), tasks, begun, tokenizer, out, report, self.name
            )
        report.write_card(inputs=inputs, **facts)

    def _task(self, member: Member, tokenizer: PreTrainedTokenizerBase, out: Path) -> Task:
        split, longest = member.data.load(self.name, member.seed), self.options.max_length
        args = self._arguments(member, out)
        options = {"too_long": self.options.too_long, "learned": learned_tokens(self.options.args, tokenizer)}
        rows, left_out = fitting_examples(split.train, tokenizer, longest, self.name, **options)
        held_out, not_held_out = fitting_examples(split.eval, tokenizer, longest, self.name, held_out=True, **options)
        check_held_out(not_held_out, split)
        return Task(member, args, rows, held_out, (*split.tallies, left_out, not_held_out))

    def _arguments(self, member: Member, out: Path) -> SFTConfig:
        return training.arguments(SFTConfig, self.name, member.options, out, member.seed, self.device, self.dtype)


def check_early_stopping(found: list[Member], key: str) -> None:
    """Raise AlignError where there is no one held-out loss to stop by."""
    split = found[0].data.load(key, found[0].seed) if len(found) == 1 else None
    if split is None or not split.eval or by_task(split.eval):
        why = "adapters side by side" if split is None else "several tasks" if split.eval else "no held-out rows"
        raise AlignError(f"{key}.early_stopping wants one held-out loss, and there are {why}\n  leave it out")


def build(stage: StagePlan, runtime: Runtime) -> SFT:
    """The stage `sft`, or `best_of`: fine-tuning on the best completions, as `preferences` ranked them."""
    options, method = stage.options, runtime.peft(stage.options.peft)
    rates = options.learning_rate
    own = tuple(rate(one, method) for one in rates) if isinstance(rates, tuple) else rate(rates, method)
    return SFT(
        replace(options, learning_rate=own), runtime.sources(options.data), method, runtime.seed, runtime.device,
        runtime.dtype, stage.spec.name,
    )  # fmt: skip


def check_packing(args: dict[str, Any], method: PeftConfig | None, key: str) -> None:
    """Raise AlignError for packing that cannot be.

    Rows laid end to end that nothing cuts (TRL 1.16 refuses them late), or that see each other: TRL keeps rows apart by
    `padding_free`, which packing turns on, but for wrapped. A method that plans by optimizer steps, whose number
    packing makes unknown.
    """
    if args.get("padding_free") and not args.get("packing"):
        raise AlignError(
            f"{key}.args.padding_free=true: {key}.max_length cuts no row then\n  use +{key}.args.packing=true as well"
        )
    together = "rows of one sequence would see each other"
    if args.get("packing_strategy") == "wrapped":
        raise AlignError(
            f"{key}.args.packing_strategy=wrapped: {together}\n  use {key}.args.packing_strategy=bfd_split"
        )
    if args.get("eval_packing") and not args.get("packing"):
        raise AlignError(
            f"{key}.args.eval_packing=true: {together}\n  use +{key}.args.packing=true as well, or leave it out"
        )
    if args.get("packing") and hooks_of(method) is not NONE and args.get("max_steps", -1) <= 0:
        raise AlignError(
            f"{key}.args.packing=true: {method.peft_type.value} plans by the number of optimizer steps, which packing "
            f"changes\n  use +{key}.args.max_steps=N as well, or leave packing out"
        )


def _train_one(trainer: SFTTrainer, task: Task, begun: Start, out: Path, report: StageReport) -> dict[str, Any]:
    """Train, evaluates and saves what a run has alone; facts for its card."""
    trainer.optimizer = training.loraplus(begun.model, task.args, task.member.options.loraplus_lr_ratio)
    if patience := task.member.options.early_stopping:
        trainer.add_callback(EarlyStoppingCallback(patience))
    train(trainer, report)
    facts = {"learning_rate": task.args.learning_rate, **task.facts()}
    if task.held_out:
        losses = task.held_out_loss(trainer)
        by_name = ", ".join(f"{name.removeprefix('eval_loss_')} {v:.3f}" for name, v in list(losses.items())[1:])
        report.say(f"held-out loss {losses['eval_loss']:.3f} nats a token{f' ({by_name})' if by_name else ''}")
        facts |= losses
    save_model(begun.model, out)
    return facts


def _train_many(
    trainers: dict[str, SFTTrainer], tasks: list[Task], begun: Start, tokenizer: PreTrainedTokenizerBase, out: Path,
    report: StageReport, key: str,
) -> dict[str, Any]:  # fmt: skip
    """Train the adapters, by their names in the model, in one pass; saves each, and the best at the root of `out`."""
    model: PeftModel = begun.model
    learners = [
        learner(model, f"adapter_{i}", adapter, trainer, tasks[i].member.options.loraplus_lr_ratio, key)
        for i, (adapter, trainer) in enumerate(trainers.items())
    ]
    train_together(model, learners, report)
    found = []
    for one, task in zip(learners, tasks, strict=True):
        with use_adapter(model, one.adapter):
            losses = task.held_out_loss(one.trainer)
        loss, folder = losses["eval_loss"], out / one.name
        save_adapter(model, folder, one.adapter)
        tokenizer.save_pretrained(folder)
        report.metrics(one.steps, {f"{one.name}/eval_loss": loss})
        report.say(f"{one.name} ({task.member.differs}): held-out loss {loss:.3f} nats a token")
        options = task.member.options
        found.append(
            {"name": one.name, "seed": task.member.seed, "learning_rate": options.learning_rate, **task.facts()}
            | {"differs": task.member.differs, **losses}
        )
    best = min(found, key=lambda one: math.inf if math.isnan(one["eval_loss"]) else one["eval_loss"])
    shutil.copytree(out / best["name"], out, dirs_exist_ok=True)
    report.say(f"{best['name']} is the best and the stage's result, in {out}; the others lie beside it")
    own = ("name", "seed", "learning_rate", "differs")
    return {"adapters": found, "best": best["name"], **{key: value for key, value in best.items() if key not in own}}
