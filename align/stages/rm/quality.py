"""Quality of a reward model, by its scores of held-out pairs: accuracy, calibration, and what length alone explains.

Shapes: B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align.data.encode import prompt_ids, shared_length, whole_ids
from align.ppo.rollouts import Row, write
from align.roles.modules import ScoreModule, by_length
from align.roles.policy import TrainedPolicy
from align.roles.tokenizer import stop_ids
from align.rollout.hf import HFRollout
from align.types import Rollout, Sampling
from align.words import counted

BINS = 10
MATCHED = 0.1
"""Completions are matched in length where they differ by at most this share of the longer one."""
FEW = 16
"""Fewer pairs tell too little: guessing would be right on three quarters of them within two standard errors."""


@dataclass
class PairScores:
    """Pairs as a reward model scores them; lengths are tokens of the completions without the prompt."""

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_length_B: Tensor
    rejected_length_B: Tensor

    @property
    def margin_B(self) -> Tensor:
        return self.chosen_B - self.rejected_B

    @property
    def right_B(self) -> Tensor:
        """1 where the chosen completion scores higher, 0.5 for a tie, else 0."""
        return (self.margin_B.sign() + 1) / 2


def report_of(scores: PairScores, groups: list[str] | None = None, swaps: PairScores | None = None) -> dict[str, Any]:
    """Figures for card.json, with `warnings`; shares lie from 0 to 1, and a mean over no pairs is None.

    `groups` names the group of each pair, for accuracy by group. `swaps` are right completions against those to other
    prompts.
    """
    figures = {
        "pairs": len(scores.margin_B),
        "accuracy": _mean(scores.right_B),
        "margin": _mean(scores.margin_B),
        "calibration": calibration(scores.margin_B),
        "length": length_bias(scores),
    }
    if groups:
        figures["accuracy_by"] = accuracy_by(scores.right_B, groups)
    if swaps:
        figures |= {"swap_accuracy": _mean(swaps.right_B), "swaps": len(swaps.right_B)}
    return figures | {"warnings": warnings(figures)}


def accuracy_by(right_B: Tensor, groups: list[str]) -> dict[str, dict[str, float]]:
    """Accuracy and number of pairs by the group's name, in the names' order."""
    places = {name: [i for i, group in enumerate(groups) if group == name] for name in sorted(set(groups))}
    return {name: {"accuracy": _mean(right_B[at]), "pairs": len(at)} for name, at in places.items()}


def calibration(margin_B: Tensor) -> dict[str, Any]:
    """The expected calibration error, and by bin the mean confidence, the share right and the number of pairs.

    A pair's confidence is the Bradley-Terry probability of the completion that the model prefers,
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


def length_bias(scores: PairScores) -> dict[str, Any]:
    """The score's correlation with length over all completions, and accuracy by which of the two is longer.

    `matched` are pairs within a tenth of each other's length, whichever is longer.
    """
    chosen_B, rejected_B = scores.chosen_length_B.double(), scores.rejected_length_B.double()
    longest_B = torch.maximum(chosen_B, rejected_B)
    parts = {
        "chosen_longer": chosen_B > rejected_B,
        "chosen_shorter": chosen_B < rejected_B,
        "matched": (chosen_B - rejected_B).abs() <= MATCHED * longest_B,
    }
    score_N = torch.cat([scores.chosen_B, scores.rejected_B]).double()
    return {
        "correlation": correlation(score_N, torch.cat([chosen_B, rejected_B])),
        **{
            name: {"accuracy": _mean(scores.right_B[inside_B]), "pairs": int(inside_B.sum())}
            for name, inside_B in parts.items()
        },
    }


def warnings(figures: dict[str, Any]) -> list[str]:
    """Reasons against training a policy on this reward model; empty where there are none."""
    if few := too_few(figures["pairs"]):
        return [few]
    found = []
    if figures["accuracy"] <= (bound := chance(figures["pairs"])):
        found.append(
            f"accuracy {figures['accuracy']:.3f} on {counted(figures['pairs'], 'held-out pair')} is no better than "
            f"chance (up to {bound:.3f})"
        )
    if figures.get("swaps", 0) >= FEW and figures["swap_accuracy"] <= (bound := chance(figures["swaps"])):
        found.append(
            f"blind to the prompt: a right completion beats another prompt's in {figures['swap_accuracy']:.3f} of "
            f"{figures['swaps']} swaps (chance: up to {bound:.3f}), so that one pleasing completion does for all"
        )
    longer, shorter = (figures["length"][f"chosen_{word}"]["accuracy"] for word in ("longer", "shorter"))
    if longer is not None and shorter is not None and shorter < 0.5 < longer:
        found.append(
            f"right by length alone: accuracy {longer:.3f} where the chosen completion is longer, {shorter:.3f} where "
            "it is shorter"
        )
    return found


def too_few(pairs: int, key: str = "rm", noun: str = "reward model") -> str:
    """Warning about an accuracy on too few held-out pairs; '' where they are enough."""
    if pairs >= FEW:
        return ""
    count = f"only {counted(pairs, 'held-out pair')}" if pairs else "no held-out pairs"
    return (
        f"{count}: too few to tell a good {noun} from one that guesses; use a larger {key}.data.eval_share, or "
        f"{key}.data.eval_path=FILE"
    )


def chance(pairs: int) -> float:
    """The accuracy on so many pairs that guessing has with two standard errors of luck."""
    return 0.5 + 1 / math.sqrt(pairs)


def lines(figures: dict[str, Any]) -> list[str]:
    """The report in a few lines, warnings last."""
    length = figures["length"]
    swap = f", swap test {figures['swap_accuracy']:.3f}" if "swap_accuracy" in figures else ""
    pairs = counted(figures["pairs"], "pair")
    found = [
        f"held-out accuracy {figures['accuracy']:.3f}, margin {figures['margin']:.2f}{swap} ({pairs})",
        f"calibration error {figures['calibration']['ece']:.3f}; score and length correlate "
        f"{_shown(length['correlation'], '+.2f')}; accuracy {_shown(length['chosen_longer']['accuracy'])} where the "
        f"chosen completion is longer, {_shown(length['chosen_shorter']['accuracy'])} where shorter, "
        f"{_shown(length['matched']['accuracy'])} where lengths match",
    ]
    if by := figures.get("accuracy_by"):
        parts = (f"{name} {one['accuracy']:.3f} ({one['pairs']})" for name, one in by.items())
        found.append(f"accuracy by group: {', '.join(parts)}")
    return found + [f"warning: {warning}" for warning in figures["warnings"]]


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


BATCH = 64


def score_pairs(
    module: ScoreModule, pairs: list[dict], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> PairScores:
    """Scores of both sides of every pair, and how many tokens each completion has; on the CPU."""
    sides = [whole_ids(pairs, side, tokenizer) for side in ("chosen", "rejected")]
    prompts = [prompt_ids(row["prompt"], tokenizer) if "prompt" in row else [] for row in pairs]
    lengths = [
        torch.tensor([len(ids) - shared_length(prompt, ids) for prompt, ids in zip(prompts, side, strict=True)])
        for side in sides
    ]
    return PairScores(*(score_ids(module, side, device) for side in sides), *lengths)


@torch.no_grad()
def score_ids(module: ScoreModule, rows: list[list[int]], device: torch.device) -> Tensor:
    """score_B of token sequences, on the CPU."""
    score_B = torch.zeros(len(rows))
    for part, ids_BN, mask_BN in padded(rows, BATCH, device):
        score_B[part] = module(ids_BN, mask_BN).cpu()
    return score_B


def padded(rows: list[list[int]], size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of sequences of like length: their places, ids padded on the right with 0, and the mask."""
    length_B = torch.tensor([len(row) for row in rows])
    for part in by_length(length_B, size):
        width = int(length_B[part].max())
        ids_BN = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in part.tolist()], device=device)
        yield part, ids_BN, torch.arange(width, device=device)[None] < length_B[part].to(device)[:, None]


def swapped(pairs: list[dict]) -> list[dict]:
    """Pairs of each row's chosen completion and that of the next row with another prompt."""
    rows = [row for row in pairs if "prompt" in row]
    out = []
    for i, row in enumerate(rows):
        others = (rows[(i + k) % len(rows)] for k in range(1, len(rows)))
        other = next((o for o in others if o["prompt"] != row["prompt"] and o["chosen"] != row["chosen"]), None)
        if other:
            out.append({"prompt": row["prompt"], "chosen": row["chosen"], "rejected": other["chosen"]})
    return out


def sampled(
    policy: TrainedPolicy, path: str, rows: list[Row], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int,
    batch_size: int, seed: int, purpose: str, greedy: bool = False,
) -> Rollout:  # fmt: skip
    """One completion a row, written by the policy of the folder `path` at temperature 1, on the policy's device."""
    engine = HFRollout(tokenizer.pad_token_id, batch_size)
    engine.attach(policy)
    sampling = Sampling(1.0, max_new_tokens, stop_ids(path, tokenizer), greedy)
    return write(engine, rows, sampling, seed=seed, purpose=purpose).to(policy.device)


def plot(scores: PairScores, figures: dict[str, Any], file: Path) -> bool:
    """Write the PNG `file`; False, and nothing is written, where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    reliable, margins, lengths = figure.subplots(1, 3)
    bins = figures["calibration"]["bins"]
    reliable.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", linewidth=1)
    reliable.plot([one["confidence"] for one in bins], [one["right"] for one in bins], marker="o")
    reliable.set(
        xlabel="confidence", ylabel="share right", ylim=(-0.02, 1.02), title=f"ECE {figures['calibration']['ece']:.3f}"
    )
    margins.hist(scores.margin_B.tolist(), bins=30)
    margins.axvline(0, color="grey", linewidth=1)
    margins.set(xlabel="margin", ylabel="pairs", title=f"accuracy {figures['accuracy']:.3f}")
    for name in ("chosen", "rejected"):
        x, y = getattr(scores, f"{name}_length_B"), getattr(scores, f"{name}_B")
        lengths.scatter(x.tolist(), y.tolist(), s=8, alpha=0.6, label=name)
    correlation = figures["length"]["correlation"]
    lengths.set(
        xlabel="tokens of the completion", ylabel="score",
        title="" if correlation is None else f"correlation {correlation:+.2f}",
    )  # fmt: skip
    lengths.legend()
    figure.savefig(file, dpi=110)
    return True
