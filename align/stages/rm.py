"""Stage `rm`: a reward model from preference pairs by TRL's RewardTrainer, in full or with a PEFT method.

    align stages=[rm] rm.path=FOLDER data@rm.data=preferences rm.data.path=pairs.jsonl

Its report (card.json, report.png) is on held-out pairs: accuracy and margin, calibration, how far length alone
explains the scores, and the swap test: does it prefer the right answer to another question's, or does it look at
the style alone? The mean and deviation of the score on samples
of the policy it starts from go into card.json; the weights stay raw.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from align import config
from align.data.encode import fitting_pairs
from align.data.sampled import located
from align.data.source import GROUP, Source, Split
from align.engine.cpu_linear import CpuLinear
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
from align.stages.pairs import compare, judge, score_of_samples, swapped
from align.stages.reward_plot import plot
from align.stages.reward_report import report_of, said
from align.stages.rollouts import as_rows
from align.stages.trl_bridge import arguments, check_arguments, dataset, dtypes_kept, loraplus, steps_of, train

PLOT = "report.png"


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
        if "path" in inputs:
            check_adapter(look(inputs["path"], "rm", (CAUSAL, SCORE)), "rm", self.peft, self.options.adapter)
            load_tokenizer(inputs["path"], "rm.path")

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        tokenizer = pad_apart_from_eos(load_tokenizer(inputs["path"], "rm.path"))
        split = located(self.data, inputs).load("rm", self.seed)
        rows, left_out = fitting_pairs(split.train, tokenizer, self.options.max_length, "rm")
        if left_out["too_long"]:
            report.say(f"{left_out['too_long']} pairs left out: longer than rm.max_length={self.options.max_length}")
        if left_out["alike"]:
            report.say(f"{left_out['alike']} pairs left out: both answers alike, or one empty")
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
        report.say(f"{begun.said}; {len(rows)} pairs")
        if prompted(begun.model):
            score_by_mask(begun.model)
        with dtypes_kept(begun.model):
            trainer = RewardTrainer(
                begun.model, args, train_dataset=dataset(rows), processing_class=tokenizer,
                optimizers=(loraplus(begun.model, args, self.options.loraplus_lr_ratio), None),
            )  # fmt: skip
        train(trainer, report)
        save_model(begun.model, out)
        tokenizer.save_pretrained(out)
        report.write_card(
            inputs=inputs, start=begun.said, base=begun.base, learning_rate=self.options.learning_rate,
            pairs=len(rows), left_out=left_out,
        )  # fmt: skip
        module = ScoreModule(begun.model.eval(), self.dtype == torch.bfloat16).to(self.device)
        report.write_card(**self.judge(module, split, tokenizer, out, report))
        self._measure(module, split, tokenizer, inputs["path"], report)

    def judge(
        self, module: ScoreModule, split: Split, tokenizer: PreTrainedTokenizerBase, out: Path, report: StageReport
    ) -> dict[str, Any]:
        """The report on held-out pairs, and accuracy on pairs with the answers of two questions swapped."""
        if not split.eval:
            return {}
        held_out, _ = fitting_pairs(split.eval, tokenizer, self.options.max_length, "rm")
        judged = judge(module, held_out, tokenizer, self.device)
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
        return {**facts, "report": figures}

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
