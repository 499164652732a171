"""The stage `average`: a policy moved part of the way back to where it came from.

What differs from the paper (Ramé et al. 2024, WARP, arXiv 2406.16768, section 3.3, linear interpolation towards
initialization): two policies once, no rounds; adapters are merged, and the result is a plain model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from align.plan.plan import StagePlan
from align.plan.runtime import Runtime
from align.report.report import StageReport
from align.rewards.model import check_same_tokenizer
from align.roles.folder import CAUSAL, inspect
from align.roles.loading import load_merged
from align.roles.tokenizer import load_tokenizer
from policy_average.spec import AverageOptions


@dataclass
class Average:
    options: AverageOptions

    def check(self, inputs: dict[str, str]) -> None:
        """Raise AlignError for a folder without a policy, and for policies with other tokens."""
        tokenizers = []
        for name, path in inputs.items():
            inspect(path, f"average.{name}", CAUSAL)
            tokenizers.append(load_tokenizer(path, f"average.{name}"))
            check_same_tokenizer(tokenizers[-1], tokenizers[0], f"average.{name}")

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        path, start = (
            load_merged(inspect(inputs[name], f"average.{name}", CAUSAL), CAUSAL, torch.float32)[0]
            for name in ("path", "start")
        )
        distance = average(path, start, self.options.share)
        path.save_pretrained(out)
        load_tokenizer(inputs["path"], "average.path").save_pretrained(out)
        report.say(f"{self.options.share:g} of {inputs['path']} and the rest of {inputs['start']}")
        report.write_card(inputs=inputs, share=self.options.share, distance=distance)


@torch.no_grad()
def average(model: torch.nn.Module, start: torch.nn.Module, share: float) -> float:
    """Make share · model + (1 − share) · start of `model`, in place; return how far apart the two were.

    The distance is the Euclidean norm of all differences.
    """
    squares, other = 0.0, dict(start.named_parameters())
    for name, parameter in model.named_parameters():
        squares += float((parameter - other[name]).double().square().sum())
        parameter.copy_(torch.lerp(other[name], parameter, share))
    return squares**0.5


def build(stage: StagePlan, runtime: Runtime) -> Average:
    return Average(stage.options)
