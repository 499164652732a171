"""Training of a reward model on completions with a target each: rankings, pairs with soft labels, ratings.

TRL's RewardTrainer takes hard pairs alone; this is transformers' Trainer with a loss of our own.

Shapes: B rows, K completions of the row that has most, N tokens.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import RewardConfig
from trl.trainer.utils import disable_dropout_in_model

from align import ops
from align.data.encode import fitting, sequences
from align.data.tally import ALIKE, TOO_LONG, Tally
from align.errors import AlignError
from align.stages.rm.spec import RMOptions

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def soft_pairs(score_BK: Tensor, share_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """Cross-entropy of pairs, K = 2, each completion with the share of people who preferred it."""
    return ops.pairwise_loss(score_BK[:, 0], score_BK[:, 1], share_B=share_BK[:, 0])


def squared_error(score_BK: Tensor, rating_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """The squared distance of the score from its rating, K = 1."""
    return (score_BK[:, 0].float() - rating_BK[:, 0]) ** 2


LOSSES: dict[str, Loss] = {
    "pairs": soft_pairs, "plackett_luce": ops.plackett_luce, "squared_error": squared_error,
}  # fmt: skip
RATED = ("squared_error", "ordinal")
"""Losses of ratings."""
MOST_LEVELS = 20
THRESHOLD_RATE = 1e-2
"""Thresholds are a few numbers near 1, and learn at this rate, whatever suits the model."""


class Ordinal(nn.Module):
    """Proportional odds with thresholds that train, K = 1; they start where a score of 0 gives each level its share."""

    def __init__(self, shares: tuple[float, ...]) -> None:
        super().__init__()
        below = [sum(shares[: k + 1]) for k in range(len(shares) - 1)]
        start = [math.log(share / (1 - share)) for share in below]
        gaps = [math.log(later - earlier) for earlier, later in itertools.pairwise(start)]
        self.first = nn.Parameter(torch.tensor(start[:1]))
        self.log_gaps = nn.Parameter(torch.tensor(gaps))

    def thresholds(self) -> Tensor:
        """One fewer than levels, rising."""
        return torch.cat([self.first, self.first + self.log_gaps.exp().cumsum(0)])

    def forward(self, score_BK: Tensor, level_BK: Tensor, mask_BK: Tensor) -> Tensor:
        return ops.ordinal_loss(score_BK[:, 0], level_BK[:, 0].long(), self.thresholds())


@dataclass(frozen=True)
class LossPlan:
    """Loss by which rows are learned."""

    kind: str
    """A key of LOSSES, or ordinal."""
    by_trl: bool
    """Pairs with hard labels, which TRL's RewardTrainer takes."""
    mean: float = 0.0
    std: float = 1.0
    """Of the ratings."""
    levels: dict[float, float] = field(default_factory=dict)
    """The share of each different rating, the lowest first; of ordinal alone."""


def plan(rows: list[dict], options: RMOptions) -> LossPlan:
    """The loss for rows to train on. Raises AlignError where it does not fit them, or they say nothing."""
    first = rows[0]
    rated = "rating" in first
    kind = options.loss if options.loss != "auto" else "squared_error" if rated else "pairs"
    if rated != (kind in RATED):
        raise AlignError(
            f"rm.loss={options.loss}: rm.data has {'' if rated else 'no '}ratings\n  use rm.loss=auto, or "
            f"data@rm.data={'preferences' if rated else 'ratings'}"
        )
    column = next((name for name in ("margin", "share") if name in first), None)
    if kind == "plackett_luce" and column:
        raise AlignError(f"rm.loss=plackett_luce knows no {column}, and rm.data has one\n  use rm.loss=pairs")
    if kind != "pairs" and options.label_smoothing:
        raise AlignError(
            f"rm.label_smoothing={options.label_smoothing} is for pairs, and the loss is {kind}\n"
            "  use rm.label_smoothing=0"
        )
    if options.label_smoothing == 0.5:
        raise AlignError("rm.label_smoothing=0.5 leaves no preference in any pair\n  use less, such as 0.1")
    if options.label_smoothing and "margin" in first:
        raise AlignError(
            f"rm.label_smoothing={options.label_smoothing} with a column margin: the two say different things about "
            "the same pair\n  use rm.label_smoothing=0, or leave the column out"
        )
    by_trl = kind == "pairs" and not options.label_smoothing and "share" not in first
    if not by_trl and options.args.get("center_rewards_coefficient") is not None:
        raise AlignError(
            "rm.args.center_rewards_coefficient is for pairs without shares or label smoothing\n"
            "  leave it out, or use rm.loss=pairs rm.label_smoothing=0"
        )
    if "share" in first and all(row["share"] == 0.5 for row in rows):
        raise AlignError("rm.data: every share is 0.5, so that nothing is preferred\n  use shares that differ")
    ratings = [row["rating"] for row in rows] if rated else []
    return LossPlan(kind, by_trl, *(_scale(ratings) if rated else ()), _levels(ratings) if kind == "ordinal" else {})


def _levels(ratings: list[float]) -> dict[float, float]:
    count = Counter(ratings)
    if len(count) > MOST_LEVELS:
        raise AlignError(
            f"rm.loss=ordinal: rm.data has {len(count)} different ratings, and the loss is for {MOST_LEVELS} levels at "
            "most\n  use rm.loss=squared_error"
        )
    return {level: count[level] / len(ratings) for level in sorted(count)}


def _scale(ratings: list[float]) -> tuple[float, float]:
    if len(set(ratings)) == 1:
        raise AlignError(
            f"rm.data: every rating is {ratings[0]:g}, so that there is nothing to learn\n  use ratings that differ"
        )
    return statistics.fmean(ratings), statistics.pstdev(ratings)


def loss_of(how: LossPlan) -> Loss | None:
    """The loss of a plan, which may have thresholds to train; None where TRL has it."""
    if how.by_trl:
        return None
    return Ordinal(tuple(how.levels.values())) if how.kind == "ordinal" else LOSSES[how.kind]


def facts_of_ratings(how: LossPlan, loss: Loss | None) -> dict[str, Any]:
    """Facts for card.json: mean and deviation of the ratings, or their levels and the thresholds between them."""
    if isinstance(loss, Ordinal):
        return {"levels": list(how.levels), "thresholds": loss.thresholds().tolist()}
    return {"mean": how.mean, "std": how.std}


def with_targets(rows: list[dict], how: LossPlan, label_smoothing: float) -> list[dict]:
    """Rows as `prompt`, where they have one, `completions` and a `target` of each, as the loss takes them."""
    out = []
    for row in rows:
        prompt = {"prompt": row["prompt"]} if "prompt" in row else {}
        if how.kind == "squared_error":
            completions, target = [row["completion"]], [(row["rating"] - how.mean) / how.std]
        elif how.kind == "ordinal":
            completions, target = [row["completion"]], [list(how.levels).index(row["rating"])]
        elif how.kind == "plackett_luce" and "completions" in row:
            completions, target = row["completions"], row["ranks"]
        elif how.kind == "plackett_luce":
            completions, target = [row["chosen"], row["rejected"]], [0, 1]
        else:
            share = row.get("share", 1.0)
            share = share * (1 - label_smoothing) + (1 - share) * label_smoothing
            completions, target = [row["chosen"], row["rejected"]], [share, 1 - share]
        out.append({**prompt, "completions": completions, "target": [float(one) for one in target]})
    return out


def encoded(rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> tuple[list[dict], Tally]:
    """Rows with the `ids` of each completion after its prompt, and how many were left out: `too_long`, `alike`.

    Raises AlignError if none is left.
    """
    found = [
        sequences([{**row, "completion": one} for one in row["completions"]], "completion", tokenizer) for row in rows
    ]
    places, left_out = fitting(rows, found, max_length, "rm", "row", (TOO_LONG, ALIKE), tokenizer)
    return [{"ids": [one.ids for one in found[i]], "target": rows[i]["target"]} for i in places], left_out


def graded_trainer(
    model: PreTrainedModel | PeftModel, args: RewardConfig, rows: list[dict], loss: Loss, pad: int,
    optimizer: torch.optim.Optimizer | None,
) -> Trainer:  # fmt: skip
    """A trainer whose loss is the mean over rows of `loss`, which may train too; rows as `encoded` gives them."""
    args.remove_unused_columns = False
    if args.disable_dropout:
        disable_dropout_in_model(model)
    if isinstance(model, PeftModel) and args.gradient_checkpointing:
        model.enable_input_require_grads()  # transformers #42489
    trainer = Trainer(
        model, args, train_dataset=rows, data_collator=lambda batch: collated(batch, pad),
        optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.loss_is_scaled_for_ga = False

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        target_BK, mask_BK = inputs.pop("target"), inputs.pop("mask")
        outputs = model(**inputs, use_cache=False)
        score_BK = torch.zeros_like(target_BK).masked_scatter(mask_BK, outputs.logits.squeeze(-1).float())
        mean = loss(score_BK, target_BK, mask_BK).mean()
        return (mean, outputs) if return_outputs else mean

    trainer.compute_loss = compute_loss
    if isinstance(loss, nn.Module):
        loss.to(args.device)
        group = {"params": list(loss.parameters()), "lr": THRESHOLD_RATE, "weight_decay": 0.0}
        trainer.create_optimizer().add_param_group(group)
    return trainer


def collated(batch: list[dict], pad: int) -> dict[str, Tensor]:
    """All completions of a batch padded on the right, one row each, with target_BK and mask_BK of their rows."""
    ids = [one for row in batch for one in row["ids"]]
    width, most = max(map(len, ids)), max(len(row["target"]) for row in batch)
    lengths = torch.tensor([len(one) for one in ids])
    counts = torch.tensor([len(row["target"]) for row in batch])
    return {
        "input_ids": torch.tensor([one + [pad] * (width - len(one)) for one in ids]),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "target": torch.tensor([row["target"] + [0.0] * (most - len(row["target"])) for row in batch]),
        "mask": torch.arange(most) < counts[:, None],
    }
