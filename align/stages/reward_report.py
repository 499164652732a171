"""How good a reward model is, by its scores of held-out pairs: accuracy, calibration, and what length alone explains.

Shapes: B pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BINS = 10
MATCHED = 0.1
"""Answers are matched in length where they differ by at most this share of the longer one."""
FEW = 16
"""Fewer pairs tell too little: guessing would be right on three quarters of them within two standard errors."""


@dataclass
class Judged:
    """Pairs as a reward model scores them; lengths are the answers' tokens, the prompt's not among them."""

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_length_B: Tensor
    rejected_length_B: Tensor

    @property
    def margin_B(self) -> Tensor:
        return self.chosen_B - self.rejected_B

    @property
    def right_B(self) -> Tensor:
        """1 where the chosen answer scores higher, 0.5 for a tie, else 0."""
        return (self.margin_B.sign() + 1) / 2


def report_of(judged: Judged, groups: list[str] | None = None, swaps: Judged | None = None) -> dict[str, Any]:
    """Figures for card.json, with `warnings`; shares lie from 0 to 1, and a mean over no pairs is None.

    `groups` names the group of each pair, by which accuracy is told, too. `swaps` are right answers against those to
    other prompts.
    """
    figures = {
        "pairs": len(judged.margin_B),
        "accuracy": _mean(judged.right_B),
        "margin": _mean(judged.margin_B),
        "calibration": calibration(judged.margin_B),
        "length": length_bias(judged),
    }
    if groups:
        figures["accuracy_by"] = accuracy_by(judged.right_B, groups)
    if swaps:
        figures |= {"swap_accuracy": _mean(swaps.right_B), "swaps": len(swaps.right_B)}
    return figures | {"warnings": warnings(figures)}


def accuracy_by(right_B: Tensor, groups: list[str]) -> dict[str, dict[str, float]]:
    """Accuracy and number of pairs by the group's name, in the names' order."""
    places = {name: [i for i, group in enumerate(groups) if group == name] for name in sorted(set(groups))}
    return {name: {"accuracy": _mean(right_B[at]), "pairs": len(at)} for name, at in places.items()}


def calibration(margin_B: Tensor) -> dict[str, Any]:
    """The expected calibration error, and by bin the mean confidence, the share right and the number of pairs.

    A pair's confidence is the Bradley-Terry probability of the answer that the model prefers,
    sigmoid(|margin|), from 0.5 to 1, which ten bins divide evenly; empty ones are left out. The error is
    the mean over pairs of |share right - confidence| of their bin: Guo et al. 2017 (arXiv 1706.04599),
    equation 3.
    """
    confidence_B = margin_B.abs().double().sigmoid()
    right_B = (margin_B.sign().double() + 1) / 2
    bin_B = ((confidence_B - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    bins = []
    for number in bin_B.unique().tolist():
        inside_B = bin_B == number
        bins.append(
            {
                "confidence": _mean(confidence_B[inside_B]),
                "right": _mean(right_B[inside_B]),
                "pairs": int(inside_B.sum()),
            }
        )
    error = sum(one["pairs"] * abs(one["right"] - one["confidence"]) for one in bins) / max(len(margin_B), 1)
    return {"ece": error, "bins": bins}


def length_bias(judged: Judged) -> dict[str, Any]:
    """The score's correlation with length over all answers, and accuracy by which of the two is longer.

    `matched` are pairs within a tenth of each other's length, whichever is longer.
    """
    chosen_B, rejected_B = judged.chosen_length_B.double(), judged.rejected_length_B.double()
    longest_B = torch.maximum(chosen_B, rejected_B)
    parts = {
        "chosen_longer": chosen_B > rejected_B,
        "chosen_shorter": chosen_B < rejected_B,
        "matched": (chosen_B - rejected_B).abs() <= MATCHED * longest_B,
    }
    score_N = torch.cat([judged.chosen_B, judged.rejected_B]).double()
    return {
        "correlation": correlation(score_N, torch.cat([chosen_B, rejected_B])),
        **{
            name: {"accuracy": _mean(judged.right_B[inside_B]), "pairs": int(inside_B.sum())}
            for name, inside_B in parts.items()
        },
    }


def warnings(figures: dict[str, Any]) -> list[str]:
    """What speaks against training a policy on this reward model; empty where nothing does."""
    if few := too_few(figures["pairs"]):
        return [few]
    said = []
    if figures["accuracy"] <= (bound := chance(figures["pairs"])):
        said.append(
            f"accuracy {figures['accuracy']:.3f} on {figures['pairs']} held-out pairs is no better than chance "
            f"(up to {bound:.3f})"
        )
    if figures.get("swaps", 0) >= FEW and figures["swap_accuracy"] <= (bound := chance(figures["swaps"])):
        said.append(
            f"blind to the question: a right answer beats another question's in {figures['swap_accuracy']:.3f} of "
            f"{figures['swaps']} swaps (chance: up to {bound:.3f}), so that one pleasing answer will do for all"
        )
    longer, shorter = (figures["length"][f"chosen_{word}"]["accuracy"] for word in ("longer", "shorter"))
    if longer is not None and shorter is not None and shorter < 0.5 < longer:
        said.append(
            f"right by length alone: accuracy {longer:.3f} where the chosen answer is longer, {shorter:.3f} where it "
            "is shorter"
        )
    return said


def too_few(pairs: int) -> str:
    """What is to be said of an accuracy on so many held-out pairs; '' where they are enough to be told of."""
    if pairs >= FEW:
        return ""
    found = f"only {pairs} held-out pair{'s' * (pairs != 1)}" if pairs else "no held-out pairs"
    return (
        f"{found}: too few to tell a good reward model from one that guesses; write a larger rm.data.eval_share, or "
        "rm.data.eval_path=FILE"
    )


def chance(pairs: int) -> float:
    """The accuracy on so many pairs that guessing has with two standard errors of luck."""
    return 0.5 + 1 / math.sqrt(pairs)


def said(figures: dict[str, Any]) -> list[str]:
    """The report in a few lines, warnings last."""
    length = figures["length"]
    swap = f", swap test {figures['swap_accuracy']:.3f}" if "swap_accuracy" in figures else ""
    lines = [
        f"held-out accuracy {figures['accuracy']:.3f}, margin {figures['margin']:.2f}{swap} ({figures['pairs']} pairs)",
        f"calibration error {figures['calibration']['ece']:.3f}; score and length correlate "
        f"{_shown(length['correlation'], '+.2f')}; accuracy {_shown(length['chosen_longer']['accuracy'])} where the "
        f"chosen answer is longer, {_shown(length['chosen_shorter']['accuracy'])} where shorter, "
        f"{_shown(length['matched']['accuracy'])} where lengths match",
    ]
    if by := figures.get("accuracy_by"):
        parts = (f"{name} {one['accuracy']:.3f} ({one['pairs']})" for name, one in by.items())
        lines.append(f"accuracy by group: {', '.join(parts)}")
    return lines + [f"warning: {warning}" for warning in figures["warnings"]]


def _shown(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


def agreement(score_B: Tensor, judge_B: Tensor) -> float | None:
    """Share of pairs of samples, of those that the judge scores apart, which the score orders alike; a tie counts half.

    Pairs are of any two samples, of other prompts too; those without an opinion of the judge (NaN) are left out. B
    samples; None where the judge scores none apart.
    """
    known_B = ~judge_B.isnan()
    score_B, judge_B = score_B[known_B].double(), judge_B[known_B].double()
    judged_BB = (judge_B[:, None] - judge_B).sign()
    alike_BB = ((score_B[:, None] - score_B).sign() * judged_BB + 1) / 2
    return _mean(alike_BB[judged_BB != 0])


def correlation(one_N: Tensor, other_N: Tensor) -> float | None:
    """Pearson's; None where either does not vary."""
    if len(one_N) < 2 or one_N.std() == 0 or other_N.std() == 0:
        return None
    return float(torch.corrcoef(torch.stack([one_N, other_N]))[0, 1])
