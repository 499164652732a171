"""Stage `sft`: supervised fine-tuning by TRL's SFTTrainer, in full or with a PEFT method.

align stages=[sft] model=FOLDER data@sft.data=prompt_completion sft.data.path=demos.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftConfig
from trl import SFTConfig, SFTTrainer

from align import config
from align.data.encode import fitting_examples
from align.data.source import Source
from align.engine.cpu_linear import CpuLinear
from align.peft.folder import save_model
from align.peft.rates import check_loraplus
from align.peft.stateful import planned
from align.report.report import StageReport
from align.roles.folder import CAUSAL, inspect
from align.roles.start import check_adapter, start
from align.roles.tokenizer import load_tokenizer
from align.stages.trl_bridge import arguments, check_arguments, dataset, dtypes_kept, loraplus, steps_of, train


@dataclass
class SFT:
    options: config.SFT
    data: Source
    peft: PeftConfig | None
    seed: int
    device: torch.device
    dtype: torch.dtype
    linear: CpuLinear = field(default_factory=CpuLinear)

    def check(self, inputs: dict[str, str]) -> None:
        check_arguments(SFTConfig, self.options.args, "sft")
        self._arguments(Path("unused"))
        check_loraplus(self.options.loraplus_lr_ratio, self.peft, "sft")
        self.data.check("sft")
        if "path" in inputs:
            check_adapter(inspect(inputs["path"], "sft.path", CAUSAL), "sft", self.peft, self.options.adapter)
            load_tokenizer(inputs["path"], "sft.path")

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        tokenizer = load_tokenizer(inputs["path"], "sft.path")
        split = self.data.load("sft", self.seed)
        rows, left_out = fitting_examples(split.train, tokenizer, self.options.max_length, "sft")
        held_out, _ = fitting_examples(split.eval, tokenizer, self.options.max_length, "sft") if split.eval else ([], 0)
        if left_out:
            report.say(
                f"{left_out} rows left out: no token of the answer within sft.max_length={self.options.max_length}"
            )
        args = self._arguments(out)
        torch.manual_seed(self.seed)
        begun = start(
            inputs["path"], key="sft", head=CAUSAL, peft=planned(self.peft, steps_of(args, len(rows)), "sft"),
            adapter=self.options.adapter,
            out=out, dtype=self.dtype, kinds=(CAUSAL,),
        )  # fmt: skip
        self.linear.apply(begun.model, report.say)
        report.write_card(cpu_linear=self.linear.facts())
        report.say(f"{begun.said}; {len(rows)} rows, {len(held_out)} held out")
        with dtypes_kept(begun.model):
            trainer = SFTTrainer(
                begun.model, args, train_dataset=dataset(rows), eval_dataset=dataset(held_out) if held_out else None,
                processing_class=tokenizer,
                optimizers=(loraplus(begun.model, args, self.options.loraplus_lr_ratio), None),
            )  # fmt: skip
        train(trainer, report)
        facts = {
            "learning_rate": self.options.learning_rate,
            "start": begun.said,
            "base": begun.base,
            "rows": len(rows),
            "left_out": left_out,
        }
        if held_out:
            facts["eval_loss"] = trainer.evaluate()["eval_loss"]
            report.say(f"held-out loss {facts['eval_loss']:.3f} nats a token")
        save_model(begun.model, out)
        tokenizer.save_pretrained(out)
        report.write_card(inputs=inputs, **facts)

    def _arguments(self, out: Path) -> SFTConfig:
        return arguments(SFTConfig, "sft", self.options, out, self.seed, self.device, self.dtype == torch.bfloat16)
