"""Stages `dpo` and `kto`: a policy straight from preferences, by TRL's trainers, in full or with a PEFT method.

    align stages=[dpo] actor.path=runs/NAME/latest/sft data@dpo.data=preferences dpo.data.path=pairs.jsonl
    align stages=[kto] actor.path=runs/NAME/latest/sft data@kto.data=unpaired kto.data.path=marked.jsonl

Actor, reference and their facets are PPO's (`actor.path`, `peft@actor.peft`, `actor.adapter`, `reference.path`); the
reference is the actor as it starts, unless another is named. DPO: Rafailov et al. 2023, arXiv 2305.18290; `dpo.loss`
is any of TRL's, such as ipo (Azar et al. 2023, arXiv 2310.12036). KTO: Ethayarajh et al. 2024, arXiv 2402.01306.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from align.config import ActorOptions
from align.data.encode import fitting_marked, fitting_pairs
from align.data.files import located, unwritten
from align.data.formats import check_preferring
from align.data.source import Source, check_held_out
from align.data.tally import Tally
from align.engine.linear import give_kernel
from align.errors import AlignError
from align.peft.folder import save_model
from align.peft.prompts import prompted
from align.peft.rates import check_loraplus, rate
from align.peft.stateful import planned
from align.plan.plan import StagePlan
from align.plan.runtime import Runtime
from align.report.report import StageReport
from align.rewards.model import check_same_tokenizer
from align.roles.folder import CAUSAL, inspect
from align.roles.loading import load_frozen
from align.roles.start import start
from align.roles.tokenizer import load_tokenizer
from align.stages import training
from align.stages.direct.spec import DPOOptions, KTOOptions
from align.stages.rm.quality import too_few
from align.words import counted

MOST_UNEQUAL = 4 / 3
"""Ratio of weighed good to weighed bad completions (or the other way round) up to which nobody is warned."""
OURS = {"beta": "beta", "loss_type": "loss"}
"""TRL's arguments, by the names that they have here."""


@dataclass(frozen=True)
class Method:
    name: str
    trainer: type
    arguments: type
    fitting: Callable[..., tuple[list[dict], Tally]]
    figures: dict[str, str]
    """Of the trainer's evaluation, by their names in card.json."""


DPO_METHOD = Method(
    "dpo", DPOTrainer, DPOConfig, fitting_pairs,
    {"eval_loss": "eval_loss", "eval_rewards/accuracies": "eval_accuracy", "eval_rewards/margins": "eval_margin"},
)  # fmt: skip
KTO_METHOD = Method(
    "kto", KTOTrainer, KTOConfig, fitting_marked, {"eval_loss": "eval_loss", "eval_rewards/margins": "eval_margin"}
)


@dataclass
class Direct:
    method: Method
    options: DPOOptions | KTOOptions
    data: Source
    actor: ActorOptions
    peft: PeftConfig | None
    seed: int
    device: torch.device
    dtype: torch.dtype

    def check(self, inputs: dict[str, str]) -> None:
        name = self.method.name
        training.check_arguments(self.method.arguments, self.options.args.plain(), name, OURS)
        check_loraplus(self.actor.loraplus_lr_ratio, self.peft, "actor")
        args = self._arguments(Path("unused"))
        training.check_metric(args, name)
        self.data.check(name)
        if not unwritten(self.data):
            split = self.data.load(name, self.seed)
            check_preferring(split.train, name)
            training.check_held_out(args, split.eval, name)
        if "reference" in inputs:
            inspect(inputs["reference"], "reference.path", CAUSAL)
        if "actor" in inputs:
            training.check_start(inputs["actor"], "actor", self.peft, self.actor.adapter)
            self._tokenizer(inputs)

    def _tokenizer(self, inputs: dict[str, str]) -> PreTrainedTokenizerBase:
        """The actor's; raises AlignError where the reference has another."""
        tokenizer = load_tokenizer(inputs["actor"], "actor.path")
        if "reference" in inputs:
            check_same_tokenizer(load_tokenizer(inputs["reference"], "reference.path"), tokenizer, "reference.path")
        return tokenizer

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        name, path = self.method.name, inputs["actor"]
        tokenizer = self._tokenizer(inputs)
        split = located(self.data, inputs).load(name, self.seed)
        rows, left_out = self._fitting(split.train, tokenizer)
        training.tell_tasks(rows, report)
        held_out, not_held_out = self._fitting(split.eval, tokenizer, held_out=True)
        report.tell(*split.tallies, left_out, not_held_out)
        check_held_out(not_held_out, split)
        args = self._arguments(out)
        if isinstance(args, KTOConfig):
            rows, held_out = self._in_batches(rows, held_out, args, report)
        training.check_held_out(args, held_out, name)
        torch.manual_seed(self.seed)
        method = planned(self.peft, training.steps_of(args, len(rows)), "actor")
        begun = start(
            path, key="actor", head=CAUSAL, peft=method, adapter=self.actor.adapter, out=out, dtype=self.dtype,
            kinds=(CAUSAL,),
        )  # fmt: skip
        reference = self._reference(inputs, begun.model)
        give_kernel(begun.model, report.say)
        report.say(f"{begun.description}; {counted(len(rows), 'row')}, {len(held_out)} held out")
        with training.dtypes_kept(begun.model):
            trainer = self.method.trainer(
                begun.model, reference, args, train_dataset=training.dataset(rows),
                eval_dataset=training.dataset(held_out) if held_out else None, processing_class=tokenizer,
                optimizers=(training.loraplus(begun.model, args, self.actor.loraplus_lr_ratio), None),
            )  # fmt: skip
        training.train(trainer, report)
        facts = self._judge(trainer, report) if held_out else {}
        save_model(begun.model, out)
        tokenizer.save_pretrained(out)
        report.write_card(
            inputs=inputs, start=begun.description, base=begun.base,
            learning_rate=args.learning_rate, rows=len(rows), **facts,
        )  # fmt: skip

    def _fitting(
        self, rows: list[dict], tokenizer: PreTrainedTokenizerBase, held_out: bool = False
    ) -> tuple[list[dict], Tally]:
        return self.method.fitting(rows, tokenizer, self.options.max_length, self.method.name, held_out)

    def _in_batches(
        self, rows: list[dict], held_out: list[dict], args: KTOConfig, report: StageReport
    ) -> tuple[list[dict], list[dict]]:
        """Rows of KTO as its batches take them, with a line on each that is left out and on what it cannot do."""
        size = args.per_device_train_batch_size
        if args.loss_type == "kto":
            check_compared(size, args.gradient_accumulation_steps, report)
        found = []
        for part, name in ((rows, "rows"), (held_out, "held-out rows")):
            shuffled = in_order(part, self.seed)
            if args.loss_type == "kto" and len(shuffled) % size == 1:
                report.say(f"1 of {len(part)} {name} left out: alone in the last batch, with none to compare it with")
                shuffled = without_one(shuffled)
            found.append(shuffled)
        if warning := unbalanced(found[0], args):
            report.say(warning)
        return found[0], found[1]

    def _reference(self, inputs: dict[str, str], model: PreTrainedModel | PeftModel) -> PreTrainedModel | None:
        """Reference of TRL's trainer: the named one, or the model as it is now; None where TRL copies it."""
        if "reference" in inputs:
            frozen = load_frozen(inspect(inputs["reference"], "reference.path", CAUSAL), self.dtype)
            return frozen.get_base_model() if isinstance(frozen, PeftModel) else frozen
        if isinstance(model, PeftModel) and prompted(model):
            return None
        return frozen_copy(model)

    def _judge(self, trainer: Any, report: StageReport) -> dict[str, float]:
        """The trainer's figures on held-out rows, with a warning where an accuracy is of few."""
        found = trainer.evaluate()
        facts = {ours: found[theirs] for theirs, ours in self.method.figures.items() if theirs in found}
        report.say("held out: " + ", ".join(f"{name.removeprefix('eval_')} {v:.3f}" for name, v in facts.items()))
        if "eval_accuracy" in facts and (few := too_few(len(trainer.eval_dataset), self.method.name, "policy")):
            report.say(f"warning: {few}")
        return facts

    def _arguments(self, out: Path) -> DPOConfig | KTOConfig:
        own = {argument: getattr(self.options, ours) for argument, ours in OURS.items()}
        options = replace(self.options, args={**self.options.args, **own})
        return training.arguments(
            self.method.arguments, self.method.name, options, out, self.seed, self.device, self.dtype
        )


METHODS = {method.name: method for method in (DPO_METHOD, KTO_METHOD)}


def build(stage: StagePlan, runtime: Runtime) -> Direct:
    options, actor = stage.options, stage.sections.actor.options
    method = runtime.peft(actor.peft)
    return Direct(
        METHODS[stage.spec.name], replace(options, learning_rate=rate(options.learning_rate, method)),
        runtime.data(options.data), actor, method, runtime.seed, runtime.device, runtime.dtype,
    )  # fmt: skip


def in_order(rows: list[dict], seed: int) -> list[dict]:
    """Rows in a random order by `seed`: TRL's KTO trainer takes them as they come, good ones first if they do."""
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def without_one(rows: list[dict]) -> list[dict]:
    """Rows but for the last one of the label that most have."""
    good = 2 * sum(bool(row["label"]) for row in rows) >= len(rows)
    last = max(i for i, row in enumerate(rows) if bool(row["label"]) == good)
    return rows[:last] + rows[last + 1 :]


def check_compared(rows: int, micro_batches: int, report: StageReport) -> None:
    """Say how many rows KTO compares where a batch is cut. Raises AlignError where one is left."""
    setting = f"kto.args.gradient_accumulation_steps={micro_batches}"
    if rows == 1:
        raise AlignError(
            f"{setting} leaves micro-batches of one row, and KTO compares rows of a micro-batch\n"
            f"  use kto.batch_size={2 * micro_batches}"
        )
    if micro_batches > 1:
        report.say(
            f"warning: {setting}: KTO compares the {rows} rows of a micro-batch, not all {rows * micro_batches} of a "
            "batch, and trains otherwise than without it"
        )


def unbalanced(rows: list[dict], args: KTOConfig) -> str:
    """Warning where good and bad completions are unequally many for their weights, with a weight to use; else ''.

    Ethayarajh et al. 2024, equation 8: weight times number of the good is 1 to 4/3 of that of the bad.
    """
    good = sum(bool(row["label"]) for row in rows)
    bad = len(rows) - good
    share = args.desirable_weight * good / (args.undesirable_weight * bad)
    if 1 / MOST_UNEQUAL <= share <= MOST_UNEQUAL:
        return ""
    name, weight = "undesirable_weight", args.desirable_weight * good / bad
    if share < 1:
        name, weight = "desirable_weight", args.undesirable_weight * bad / good
    return (
        f"warning: {good} good and {bad} bad completions, weighed {args.desirable_weight:g} and "
        f"{args.undesirable_weight:g}: the fewer have little say; use kto.args.{name}={weight:.3g}"
    )


def frozen_copy(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model as it computes now, never to change; what is frozen already is not copied but shared."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return copy.deepcopy(plain, shared).requires_grad_(False).eval()
