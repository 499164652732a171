"""Stage `rm`: a reward model from preference pairs, rankings or ratings, in full or with a PEFT method.

    align stages=[rm] rm.path=FOLDER data@rm.data=preferences rm.data.path=pairs.jsonl
    align stages=[rm] rm.path=FOLDER data@rm.data=rankings rm.data.path=rankings.jsonl rm.loss=plackett_luce
    align stages=[rm] rm.path=FOLDER data@rm.data=preferences rm.data.path=pairs.jsonl rm.members=3

Pairs with hard labels are trained on by TRL's RewardTrainer, all else as align.stages.rm.graded has it.

Its report (card.json, report.png) is on held-out pairs: accuracy and margin, calibration, correlation with length, and
the swap test: does it prefer the right completion to another prompt's, or does it look at the style alone? card.json
also has mean and deviation of the score on samples of the policy that it starts from, and its agreement with a judge on
them (`+reward@rm.judge=fn`); the weights stay raw.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import RewardConfig, RewardTrainer

from align.data.encode import fitting_pairs, whole_ids
from align.data.files import located, unwritten
from align.data.formats import as_pairs, check_preferring
from align.data.source import GROUP, Source, Split, check_held_out
from align.data.tally import Tally
from align.engine.linear import give_kernel
from align.errors import AlignError
from align.peft.folder import save_model
from align.peft.prompts import prompted
from align.peft.rates import check_loraplus, rate
from align.peft.routes import changes_the_base
from align.peft.stateful import planned
from align.plan.plan import StagePlan
from align.plan.runtime import Runtime
from align.ppo.rollouts import as_rows, texts_of
from align.report.report import StageReport
from align.roles.alone import load_policy
from align.roles.folder import CAUSAL, SCORE
from align.roles.loading import look
from align.roles.modules import ScoreModule, score_by_mask, score_rollout
from align.roles.start import start
from align.roles.tokenizer import load_tokenizer, pad_apart_from_eos
from align.stages import training
from align.stages.rm import graded, quality
from align.stages.rm.spec import RMOptions
from align.stages.sft.side_by_side import check_seeds
from align.types import Reward, RewardState, Rollout
from align.words import counted

PLOT = "report.png"
KINDS = (CAUSAL, SCORE)
"""Models that a reward model starts from."""
NOT_FINITE = "rm: scores of held-out pairs are not finite after the last step\n  use a lower rm.learning_rate"
NOUNS = {"pairs": "pairs", "plackett_luce": "rankings", "squared_error": "ratings", "ordinal": "ratings"}


@dataclass
class Lesson:
    """Rows that a reward model learns from, and their loss; members of an ensemble share one Lesson."""

    inputs: dict[str, str]
    split: Split
    rows: list[dict]
    held_out: list[dict]
    """Held-out pairs, looked at before anything trains."""
    how: graded.LossPlan
    tokenizer: PreTrainedTokenizerBase
    samples: Rollout | None = None
    """Of the starting policy, on which scores are measured."""
    judge_B: Tensor | None = None
    """Scores of these by `rm.judge`."""


@dataclass
class RM:
    options: RMOptions
    data: Source
    peft: PeftConfig | None
    max_new_tokens: int
    """Length of the samples on which the score is measured."""
    seed: int
    device: torch.device
    dtype: torch.dtype
    check_judge: Callable[[], None] = lambda: None
    make_judge: Callable[[dict[str, str], Path, StageReport, PreTrainedTokenizerBase], Reward] | None = None
    """Loads the judge with whom the scores of samples are compared; None: nobody."""

    def check(self, inputs: dict[str, str]) -> None:
        training.check_arguments(RewardConfig, self.options.args.plain(), "rm")
        training.check_metric(self._arguments(Path("unused"), self.seed), "rm")
        check_seeds("rm.members", self.options.members, self.seed)
        check_loraplus(self.options.loraplus_lr_ratio, self.peft, "rm")
        self.data.check("rm")
        self.check_judge()
        if not unwritten(self.data):
            rows = self.data.load("rm", self.seed).train
            graded.plan(rows, self.options)
            check_preferring(rows, "rm")
        if "path" in inputs:
            training.check_start(inputs["path"], "rm", self.peft, self.options.adapter, KINDS)

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        lesson = self._lesson(inputs, report)
        if self.options.members == 1:
            self._train(lesson, self.seed, out, out, report)
        else:
            train_members(self.options.members, self.seed, out, report, partial(self._train, lesson))

    def _lesson(self, inputs: dict[str, str], report: StageReport) -> Lesson:
        tokenizer = pad_apart_from_eos(load_tokenizer(inputs["path"], "rm.path"))
        split = located(self.data, inputs).load("rm", self.seed)
        training.tell_tasks(split.train, report)
        how = graded.plan(split.train, self.options)
        rows, left_out = self._fitting(split.train, how, tokenizer)
        pairs = as_pairs(split.eval)
        held_out, not_held_out = fitting_pairs(pairs, tokenizer, self.options.max_length, "rm", held_out=True)
        report.tell(*split.tallies, left_out, not_held_out)
        check_held_out(not_held_out, split)
        return Lesson(inputs, split, rows, held_out, how, tokenizer)

    def _train(self, lesson: Lesson, seed: int, out: Path, home: Path, report: StageReport) -> None:
        """One reward model in `out`; `home` takes a base that is made for it and those like it."""
        rows, how, tokenizer = lesson.rows, lesson.how, lesson.tokenizer
        args = self._arguments(out, seed)
        torch.manual_seed(seed)
        bases = out if self.peft is not None and changes_the_base(self.peft) else home
        method = planned(self.peft, training.steps_of(args, len(rows)), "rm")
        begun = start(
            lesson.inputs["path"], key="rm", head=SCORE, peft=method, adapter=self.options.adapter, out=bases,
            dtype=self.dtype,
        )  # fmt: skip
        give_kernel(begun.model, report.say)
        begun.model.config.pad_token_id = tokenizer.pad_token_id
        report.say(f"{begun.description}; {counted(len(rows), NOUNS[how.kind].removesuffix('s'))}")
        if prompted(begun.model):
            score_by_mask(begun.model)
        held_out = self._on_the_way(args, lesson.held_out, how)
        loss = graded.loss_of(how)
        with training.dtypes_kept(begun.model):
            trainer = self._trainer(begun.model, args, rows, loss, tokenizer, held_out)
        training.train(trainer, report)
        save_model(begun.model, out)
        tokenizer.save_pretrained(out)
        report.write_card(
            inputs=lesson.inputs, start=begun.description, base=begun.base, learning_rate=self.options.learning_rate,
            loss=how.kind, **{NOUNS[how.kind]: len(rows)},
        )  # fmt: skip
        if how.kind in graded.RATED:
            report.write_card(rating=graded.facts_of_ratings(how, loss))
        module = ScoreModule(begun.model.eval(), self.dtype == torch.bfloat16).to(self.device)
        report.write_card(**self.assess(module, lesson.split, lesson.held_out, tokenizer, out, report))
        self._measure(module, lesson, report)

    def _on_the_way(self, args: RewardConfig, held_out: list[dict], how: graded.LossPlan) -> datasets.Dataset | None:
        """Held-out pairs for TRL to evaluate on where `rm.args.eval_strategy` asks for it."""
        if args.eval_strategy == "no":
            return None
        if not how.by_trl:
            raise AlignError(
                f"rm.args.eval_strategy={args.eval_strategy.value}: TRL evaluates on hard pairs alone\n"
                "  leave it out, or use rm.loss=pairs"
            )
        training.check_held_out(args, held_out, "rm")
        return training.dataset(held_out)

    def _fitting(
        self, rows: list[dict], how: graded.LossPlan, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[dict], Tally]:
        """Rows as the trainer takes them, and the count of those left out."""
        if how.kind != "pairs":
            return graded.encoded(graded.with_targets(rows, how, 0.0), tokenizer, self.options.max_length)
        pairs, left_out = fitting_pairs(as_pairs(rows), tokenizer, self.options.max_length, "rm")
        if not how.by_trl:
            pairs, _ = graded.encoded(graded.with_targets(pairs, how, self.options.label_smoothing), tokenizer, None)
        return pairs, left_out

    def _trainer(
        self, model: PreTrainedModel | PeftModel, args: RewardConfig, rows: list[dict], loss: graded.Loss | None,
        tokenizer: PreTrainedTokenizerBase, held_out: datasets.Dataset | None,
    ) -> Trainer:  # fmt: skip
        optimizer = training.loraplus(model, args, self.options.loraplus_lr_ratio)
        if loss is not None:
            return graded.graded_trainer(model, args, rows, loss, tokenizer.pad_token_id, optimizer)
        return RewardTrainer(
            model, args, train_dataset=training.dataset(rows), eval_dataset=held_out, processing_class=tokenizer,
            optimizers=(optimizer, None),
        )  # fmt: skip

    def assess(
        self, module: ScoreModule, split: Split, held_out: list[dict], tokenizer: PreTrainedTokenizerBase, out: Path,
        report: StageReport,
    ) -> dict[str, Any]:  # fmt: skip
        """The report on held-out pairs, and accuracy on pairs of completions to two prompts."""
        if not split.eval:
            return {}
        rated = self._rated(module, split.eval, tokenizer, report)
        if not held_out:
            why = "no held-out prompt has two completions of different ratings" if rated else "no held-out pair is left"
            report.say(f"no report on pairs: {why}")
            return rated
        scores = quality.score_pairs(module, held_out, tokenizer, self.device)
        if not scores.margin_B.isfinite().all():
            raise AlignError(NOT_FINITE)
        groups = [row[GROUP] for row in held_out] if GROUP in held_out[0] else None
        swaps = split.eval_swaps or quality.swapped(held_out)
        swap = quality.score_pairs(module, swaps, tokenizer, self.device) if swaps else None
        figures = quality.report_of(scores, groups, swap)
        facts = {"eval_accuracy": figures["accuracy"], "eval_margin": figures["margin"], "eval_pairs": len(held_out)}
        if swaps:
            facts["swap_accuracy"] = figures["swap_accuracy"]
        for line in quality.lines(figures):
            report.say(line)
        if not quality.plot(scores, figures, out / PLOT):
            report.say(f"{PLOT} left out: matplotlib is not installed (pip install 'align-rlhf[bench]')")
        return {**rated, **facts, "report": figures}

    def _rated(
        self, module: ScoreModule, rows: list[dict], tokenizer: PreTrainedTokenizerBase, report: StageReport
    ) -> dict[str, float | None]:
        """Correlation of held-out scores and ratings; {} where there are no ratings."""
        if "rating" not in rows[0]:
            return {}
        ids = whole_ids(rows, "completion", tokenizer)
        fitting = [i for i, one in enumerate(ids) if len(one) <= self.options.max_length]
        score_B = quality.score_ids(module, [ids[i] for i in fitting], self.device)
        found = quality.correlation(score_B.double(), torch.tensor([rows[i]["rating"] for i in fitting]).double())
        shown = "–" if found is None else f"{found:+.3f}"
        report.say(f"score and rating of {counted(len(fitting), 'held-out completion')} correlate {shown}")
        return {"eval_rating_correlation": found}

    def _measure(self, module: ScoreModule, lesson: Lesson, report: StageReport) -> None:
        """Mean and deviation of the score on samples of the starting policy, into card.json."""
        if lesson.samples is None:
            lesson.samples = self._samples(lesson, report)
        if lesson.samples is None:
            return
        if self.make_judge and lesson.judge_B is None:
            judge = self.make_judge(lesson.inputs, report.out, report, lesson.tokenizer)
            texts = texts_of(lesson.samples, lesson.tokenizer)
            lesson.judge_B = judge(lesson.samples, texts, RewardState(0)).score_B.cpu()
        score_B = score_rollout(module, lesson.samples).cpu()
        mean, std = float(score_B.mean()), max(float(score_B.std()), 1e-6)
        name = Path(lesson.inputs["path"]).name
        report.say(f"score on {counted(len(score_B), 'sample')} of {name}: mean {mean:.2f}, deviation {std:.2f}")
        report.write_card(score={"mean": mean, "std": std, "samples": len(score_B)})
        if lesson.judge_B is not None:
            agreed = quality.agreement(score_B, lesson.judge_B)
            shown = "–: it scores none apart" if agreed is None else f"{agreed:.3f}"
            report.say(f"share of pairs of samples in the order of rm.judge {shown}")
            report.write_card(judge_agreement=agreed)

    def _samples(self, lesson: Lesson, report: StageReport) -> Rollout | None:
        """Completions by the starting policy; None where it cannot write any."""
        rows = [row for row in lesson.split.train if "prompt" in row][: 4 * self.options.norm_samples]
        room = self.options.max_length - self.max_new_tokens
        rows = [row for row in as_rows(rows, lesson.tokenizer) if len(row.ids) <= room][: self.options.norm_samples]
        path = lesson.inputs["path"]
        if len(rows) >= 2 and look(path, "rm", KINDS).kind == CAUSAL:
            policy = load_policy(path, "rm.path", self.device)
            return quality.sampled(
                policy, path, rows, lesson.tokenizer, self.max_new_tokens, quality.BATCH, self.seed, "norm"
            )
        report.say(
            "score not measured on samples: it needs two pairs with a prompt that leaves room for "
            "rollout.max_new_tokens within rm.max_length, and a language model to start from"
        )
        return None

    def _arguments(self, out: Path, seed: int) -> RewardConfig:
        return training.arguments(RewardConfig, "rm", self.options, out, seed, self.device, self.dtype)


def build(stage: StagePlan, runtime: Runtime) -> RM:
    options, method = stage.options, runtime.peft(stage.options.peft)
    return RM(
        replace(options, learning_rate=rate(options.learning_rate, method)), runtime.data(options.data), method,
        stage.sections.rollout.options.max_new_tokens, runtime.seed, runtime.device, runtime.dtype,
        **runtime.judge(options.judge, stage),
    )  # fmt: skip


FIGURES = ("eval_accuracy", "eval_margin", "swap_accuracy", "eval_rating_correlation")


def train_members(
    members: int, seed: int, out: Path, report: StageReport, train: Callable[[int, Path, Path, StageReport], None]
) -> None:
    """Members in out/member_1, out/member_2, … by `seed` and those after it; the best on held-out pairs in `out`, too.

    `train(seed, folder, home, report)` makes one; `home` takes a base that they share. Each folder is that of a run of
    one member. Without held-out pairs the first counts as the best.
    """
    cards: dict[str, dict[str, Any]] = {}
    for number in range(members):
        name = f"member_{number + 1}"
        (out / name).mkdir()
        own = StageReport(f"{report.name}/{name}", out / name, report.run)
        try:
            own.say(f"{number + 1} of {members}, seed {seed + number}")
            own.write_card(seed=seed + number)
            train(seed + number, out / name, out, own)
        finally:
            own.close()
        cards[name] = own.card
    best = max(cards, key=lambda name: cards[name].get("eval_accuracy", 0.0))
    shutil.copytree(out / best, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("trainer", "rest"))
    few = quality.too_few(cards[best].get("eval_pairs", 0))
    rank = "counts as" if few else "is"
    report.say(f"{best} {rank} the best and is the stage's result, in {out}; all {members} lie beside it")
    if few:
        report.say(f"warning: {few}")
    kept = ("seed", *FIGURES)
    figures = [{"name": name, **{key: card[key] for key in kept if key in card}} for name, card in cards.items()]
    facts = {key: value for key, value in cards[best].items() if key not in ("stage", "seed")}
    report.write_card(members=figures, best=best, **facts)
