"""Stage `rm`: a reward model from preference pairs, rankings or ratings, in full or with a PEFT method.

    align stages=[rm] rm.path=FOLDER data@rm.data=preferences rm.data.path=pairs.jsonl
    align stages=[rm] rm.path=FOLDER data@rm.data=rankings rm.data.path=rankings.jsonl rm.loss=plackett_luce

Pairs with hard labels are trained on by TRL's RewardTrainer, all else as align.stages.graded_trainer has it.

Its report (card.json, report.png) is on held-out pairs: accuracy and margin, calibration, how far length alone
explains the scores, and the swap test: does it prefer the right answer to another question's, or does it look at
the style alone? The mean and deviation of the score on samples
of the policy it starts from go into card.json; the weights stay raw.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import RewardConfig, RewardTrainer

from align import config
from align.data.encode import answer_ids, fitting_pairs
from align.data.graded import as_pairs
from align.data.preferring import check_preferring
from align.data.sampled import AUTO, Sampled, located
from align.data.source import GROUP, Source, Split
from align.engine.cpu_linear import CpuLinear
from align.errors import AlignError
from align.peft.folder import save_model
from align.peft.prompts import prompted
from align.peft.rates import check_loraplus
from align.peft.stateful import planned
from align.report.report import StageReport
from align.roles.folder import CAUSAL, SCORE
from align.roles.loading import look
from align.roles.modules import ScoreModule, score_by_mask
from align.roles.start import check_adapter, start
from align.roles.tokenizer import load_tokenizer, pad_apart_from_eos
from align.stages.graded_trainer import Plan, encoded, graded_trainer, plan, with_targets
from align.stages.pairs import compare, judge, score_ids, score_of_samples, swapped
from align.stages.reward_plot import plot
from align.stages.reward_report import correlation, report_of, said
from align.stages.rollouts import as_rows
from align.stages.trl_bridge import arguments, check_arguments, dataset, dtypes_kept, loraplus, steps_of, train

PLOT = "report.png"
NOT_FINITE = "scores of held-out pairs are not finite: training has diverged"
NOUNS = {"pairs": "pairs", "plackett_luce": "rankings", "squared_error": "ratings"}


@dataclass
class RM:
    options: config.RM
    data: Source
    peft: PeftConfig | None
    max_new_tokens: int
    """Length of the samples on which the score is measured."""
    seed: int
    device: torch.device
    dtype: torch.dtype
    linear: CpuLinear = field(default_factory=CpuLinear)

    def check(self, inputs: dict[str, str]) -> None:
        check_arguments(RewardConfig, self.options.args, "rm")
        self._arguments(Path("unused"))
        check_loraplus(self.options.loraplus_lr_ratio, self.peft, "rm")
        self.data.check("rm")
        if not (isinstance(self.data, Sampled) and self.data.path == AUTO):  # that is still to be written
            rows = self.data.load("rm", self.seed).train
            plan(rows, self.options)
            check_preferring(rows, "rm")
        if "path" in inputs:
            check_adapter(look(inputs["path"], "rm", (CAUSAL, SCORE)), "rm", self.peft, self.options.adapter)
            load_tokenizer(inputs["path"], "rm.path")

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        tokenizer = pad_apart_from_eos(load_tokenizer(inputs["path"], "rm.path"))
        split = located(self.data, inputs).load("rm", self.seed)
        how = plan(split.train, self.options)
        rows, left_out = self._fitting(split.train, how, tokenizer)
        if left_out["too_long"]:
            report.say(f"{left_out['too_long']} rows left out: longer than rm.max_length={self.options.max_length}")
        if left_out["alike"]:
            report.say(f"{left_out['alike']} rows left out: answers alike, or one of a pair empty")
        held_out = self._held_out(split, tokenizer)
        args = self._arguments(out)
        torch.manual_seed(self.seed)
        begun = start(
            inputs["path"], key="rm", head=SCORE, peft=planned(self.peft, steps_of(args, len(rows)), "rm"),
            adapter=self.options.adapter,
            out=out, dtype=self.dtype,
        )  # fmt: skip
        self.linear.apply(begun.model, report.say)
        report.write_card(cpu_linear=self.linear.facts())
        begun.model.config.pad_token_id = tokenizer.pad_token_id
        report.say(f"{begun.said}; {len(rows)} {NOUNS[how.kind]}")
        if prompted(begun.model):
            score_by_mask(begun.model)
        on_the_way = self._on_the_way(args, held_out, how)
        with dtypes_kept(begun.model):
            trainer = self._trainer(begun.model, args, rows, how, tokenizer, on_the_way)
        train(trainer, report)
        save_model(begun.model, out)
        tokenizer.save_pretrained(out)
        report.write_card(
            inputs=inputs, start=begun.said, base=begun.base, learning_rate=self.options.learning_rate,
            left_out=left_out, loss=how.kind, **{NOUNS[how.kind]: len(rows)},
        )  # fmt: skip
        if how.kind == "squared_error":
            report.write_card(rating={"mean": how.mean, "std": how.std})
        module = ScoreModule(begun.model.eval(), self.dtype == torch.bfloat16).to(self.device)
        report.write_card(**self.judge(module, split, held_out, tokenizer, out, report))
        self._measure(module, split, tokenizer, inputs["path"], report)

    def _on_the_way(self, args: RewardConfig, held_out: list[dict], how: Plan) -> datasets.Dataset | None:
        """Held-out pairs for TRL to evaluate on where `rm.args.eval_strategy` asks for it."""
        if args.eval_strategy == "no":
            return None
        asked = f"rm.args.eval_strategy={args.eval_strategy.value}"
        if not how.by_trl:
            raise AlignError(f"{asked}: TRL evaluates on hard pairs alone\n  leave it out, or write rm.loss=pairs")
        if not held_out:
            raise AlignError(f"{asked}: no pairs are held out\n  write rm.data.eval_share=0.05")
        return dataset(held_out)

    def _held_out(self, split: Split, tokenizer: PreTrainedTokenizerBase) -> list[dict]:
        """Held-out pairs, looked at before anything trains."""
        return fitting_pairs(as_pairs(split.eval), tokenizer, self.options.max_length, "rm", held_out=True)[0]

    def _fitting(
        self, rows: list[dict], how: Plan, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[dict], dict[str, int]]:
        """Rows as the trainer takes them, and how many were left out, by why."""
        if how.kind != "pairs":
            return encoded(with_targets(rows, how, 0.0), tokenizer, self.options.max_length)
        pairs, left_out = fitting_pairs(as_pairs(rows), tokenizer, self.options.max_length, "rm")
        if not how.by_trl:
            pairs, _ = encoded(with_targets(pairs, how, self.options.label_smoothing), tokenizer, None)
        return pairs, left_out

    def _trainer(
        self, model: PreTrainedModel | PeftModel, args: RewardConfig, rows: list[dict], how: Plan,
        tokenizer: PreTrainedTokenizerBase, held_out: datasets.Dataset | None,
    ) -> Trainer:  # fmt: skip
        optimizer = loraplus(model, args, self.options.loraplus_lr_ratio)
        if not how.by_trl:
            return graded_trainer(model, args, rows, how.kind, tokenizer.pad_token_id, optimizer)
        return RewardTrainer(
            model, args, train_dataset=dataset(rows), eval_dataset=held_out, processing_class=tokenizer,
            optimizers=(optimizer, None),
        )  # fmt: skip

    def judge(
        self, module: ScoreModule, split: Split, held_out: list[dict], tokenizer: PreTrainedTokenizerBase, out: Path,
        report: StageReport,
    ) -> dict[str, Any]:  # fmt: skip
        """The report on held-out pairs, and accuracy on pairs with the answers of two questions swapped."""
        if not split.eval:
            return {}
        rated = self._rated(module, split.eval, tokenizer, report)
        if not held_out:
            report.say("no report on pairs: no held-out prompt has two answers of different ratings")
            return rated
        judged = judge(module, held_out, tokenizer, self.device)
        if not judged.margin_B.isfinite().all():
            report.say(f"warning: {NOT_FINITE}")
            return {**rated, "report": {"pairs": len(held_out), "warnings": [NOT_FINITE]}}
        groups = [row[GROUP] for row in held_out] if GROUP in held_out[0] else None
        figures = report_of(judged, groups)
        facts = {"eval_accuracy": figures["accuracy"], "eval_margin": figures["margin"], "eval_pairs": len(held_out)}
        swaps = split.eval_swaps or swapped(held_out)
        if swaps:
            facts["swap_accuracy"] = figures["swap_accuracy"] = compare(module, swaps, tokenizer, self.device).accuracy
        for line in said(figures):
            report.say(line)
        if not plot(judged, figures, out / PLOT):
            report.say(f"{PLOT} left out: matplotlib is not installed (pip install 'align[bench]')")
        return {**rated, **facts, "report": figures}

    def _rated(
        self, module: ScoreModule, rows: list[dict], tokenizer: PreTrainedTokenizerBase, report: StageReport
    ) -> dict[str, float | None]:
        """How held-out scores and ratings correlate, where there are ratings."""
        if "rating" not in rows[0]:
            return {}
        ids = answer_ids(rows, "completion", tokenizer)
        fitting = [i for i, one in enumerate(ids) if len(one) <= self.options.max_length]
        score_B = score_ids(module, [ids[i] for i in fitting], self.device)
        found = correlation(score_B.double(), torch.tensor([rows[i]["rating"] for i in fitting]).double())
        shown = "–" if found is None else f"{found:+.3f}"
        report.say(f"score and rating of {len(fitting)} held-out answers correlate {shown}")
        return {"eval_rating_correlation": found}

    def _measure(
        self, module: ScoreModule, split: Split, tokenizer: PreTrainedTokenizerBase, path: str, report: StageReport
    ) -> None:
        """Mean and deviation of the score on samples of the starting policy, into card.json."""
        asked = [row for row in split.train if "prompt" in row][: 4 * self.options.norm_samples]
        room = self.options.max_length - self.max_new_tokens
        rows = [row for row in as_rows(asked, tokenizer) if len(row.ids) <= room][: self.options.norm_samples]
        if len(rows) < 2 or look(path, "rm", (CAUSAL, SCORE)).kind != CAUSAL:
            report.say(
                "score not measured on samples: it needs two pairs with a prompt that leaves room for "
                "rollout.max_new_tokens within rm.max_length, and a language model to start from"
            )
            return
        score_B = score_of_samples(
            module, path, rows, tokenizer, self.max_new_tokens, self.seed, self.device, self.linear
        )
        mean, std = float(score_B.mean()), max(float(score_B.std()), 1e-6)
        report.say(f"score on {len(score_B)} samples of {Path(path).name}: mean {mean:.2f}, deviation {std:.2f}")
        report.write_card(score={"mean": mean, "std": std, "samples": len(score_B)})

    def _arguments(self, out: Path) -> RewardConfig:
        return arguments(RewardConfig, "rm", self.options, out, self.seed, self.device, self.dtype == torch.bfloat16)
