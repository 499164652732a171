"""Held-out figures of TRL's trainers as means over tokens, pairs or rows, however the rows are cut into batches.

TRL (1.16) has means over batches: a batch counts as another, and its loss by its rows, not by its tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Trainer
from trl import DPOTrainer, KTOTrainer, SFTTrainer

IGNORED = -100
"""transformers' label of what is not learned."""
LEAST, MOST = "min_reward", "max_reward"
MARGIN, GOOD, BAD = "rewards/margins", "rewards/chosen", "rewards/rejected"
BY_TOKENS = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")


def weigh_batches(trainer: Trainer) -> None:
    """Let each batch of held-out rows count in a figure by what the figure is a mean over.

    With SFT the evaluation has `eval_tokens`, too: the tokens that its loss is a mean over.
    """
    plain_loss, plain_loop = trainer.compute_loss, trainer.evaluation_loop
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if trainer.model.training:
            return plain_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        weights, figures = weights_of(trainer, inputs), trainer._metrics["eval"]
        before = {name: len(values) for name, values in figures.items()}
        found = plain_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        seen["loss"].append((float(found[0] if return_outputs else found), weights["loss"]))
        for name, values in figures.items():
            if len(values) > before.get(name, 0):
                seen[name].append((values[-1], weights.get(name, weights["rows"])))
        return found

    def evaluation_loop(*args: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        seen.clear()
        output = plain_loop(*args, metric_key_prefix=metric_key_prefix, **options)
        means = {name: reduced(name, values) for name, values in seen.items()}
        if isinstance(trainer, KTOTrainer) and {GOOD, BAD} <= means.keys():
            means[MARGIN] = means[GOOD] - means[BAD]
        if seen:
            output.metrics[f"{metric_key_prefix}_loss"] = means.pop("loss")
        if isinstance(trainer, SFTTrainer):
            output.metrics[f"{metric_key_prefix}_tokens"] = sum(weight for _, weight in seen["loss"])
        trainer._metrics["eval"].update({name: [value] for name, value in means.items()})
        return output

    trainer.compute_loss, trainer.evaluation_loop = compute_loss, evaluation_loop


def reduced(name: str, values: list[tuple[float, float]]) -> float:
    """The figure of all batches from that of each, with its weight; the least or most where the figure is one."""
    if name in (LEAST, MOST):
        return (min if name == LEAST else max)(value for value, _ in values)
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values if weight) / total if total else values[-1][0]


def weights_of(trainer: Trainer, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Weights of a batch in the figures: its `rows` (pairs of two), or another by the figure's name."""
    if isinstance(trainer, SFTTrainer):
        tokens = float(inputs["labels"][:, 1:].ne(IGNORED).sum())
        return {"rows": float(len(inputs["labels"])), "loss": tokens, **dict.fromkeys(BY_TOKENS, tokens)}
    if isinstance(trainer, KTOTrainer):
        good_B, tokens_B = inputs["label"].bool(), inputs["completion_mask"].sum(1)
        good, bad = float(good_B.sum()), float((~good_B).sum())
        chosen, rejected = float(tokens_B[good_B].sum()), float(tokens_B[~good_B].sum())
        by_label = {GOOD: good, "logps/chosen": good, BAD: bad, "logps/rejected": bad}
        by_tokens = {"entropy": chosen + rejected, "logits/chosen": chosen, "logits/rejected": rejected}
        return {"rows": good + bad, "loss": good + bad, **by_label, **by_tokens}
    pairs = len(inputs["input_ids"]) // 2
    if not isinstance(trainer, DPOTrainer):
        return {"rows": float(pairs), "loss": float(pairs)}
    chosen, rejected = (float(half.sum()) for half in inputs["completion_mask"].split(pairs))
    by_tokens = dict(zip(BY_TOKENS, (chosen + rejected, chosen, chosen, rejected), strict=True))
    return {"rows": float(pairs), "loss": float(pairs), **by_tokens}
