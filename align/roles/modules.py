"""The transformers model under a role's shell: its inputs, its trunk, its heads.

Shapes: B rows, N columns, L tokens of the longest row, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from align.peft.prompts import inputs_of
from align.types import Rollout


def plain(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model inside, adapters and all, without PEFT's outer shell."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def size(parameters: Iterable[nn.Parameter]) -> int:
    """Number of values in parameters, in those that ZeRO-3 has split, too."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters)


def has_router(model: PreTrainedModel | PeftModel) -> bool:
    """Return True for a mixture of experts whose router can have a loss."""
    return hasattr(plain(model).config.get_text_config(), "output_router_logits")


def to_left(ids_BN: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
    """ids_BL and mask_BL: each row's real tokens in their order, and what padding the longest row leaves behind them.

    A causal model needs neither a mask nor positions for such rows: no real token sees the padding. And a row with a
    short prompt and a long response costs no more beside one with the reverse than alone.
    """
    longest = max(int(mask_BN.sum(1).max()), 1)
    order_BL = (~mask_BN).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    return ids_BN.gather(1, order_BL), mask_BN.gather(1, order_BL)


class ScoreModule(nn.Module):
    """A reward model on its own backbone: score_B at the last real token, found by the mask and not by an id."""

    def __init__(self, model: PreTrainedModel | PeftModel, autocast: bool = False) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast

    def forward(self, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        with torch.autocast(ids_BN.device.type, torch.bfloat16, enabled=self.autocast):
            ids_BL, mask_BL = to_left(ids_BN, mask_BN)
            inputs, before = inputs_of(self.model, "default", ids_BL)
            hidden_BLD = plain(self.model).base_model(**inputs, use_cache=False).last_hidden_state[:, before:]
            return read_score(score_head(self.model), hidden_BLD, mask_BL)


def score_by_mask(model: PeftModel) -> None:
    """`model(input_ids, attention_mask)` reads the score at the last real token by the mask.

    transformers (5) looks for that token by its id, which rows of virtual tokens have not: it takes the last column,
    padding or not.
    """
    module = ScoreModule(model)

    def forward(input_ids: Tensor, attention_mask: Tensor, **others: Any) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=module(input_ids, attention_mask.bool())[:, None])

    model.forward = forward


def read_score(head: nn.Module, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """score_B, float32: the head at each row's last real token."""
    last_B = (mask_BL.sum(1) - 1).clamp(min=0)
    return head(hidden_BLD[torch.arange(len(mask_BL), device=mask_BL.device), last_B]).squeeze(-1).float()


def score_head(model: PreTrainedModel | PeftModel) -> nn.Module:
    """The head of a sequence-classification model: `score` in decoder-only models, as transformers names it."""
    return plain(model).score


BATCH = {"cpu": 8, "cuda": 64}
"""Rows of a pass; more of them leave a CPU's cache (docs/log.md)."""


def score_rollout(
    module: Callable[[Tensor, Tensor], Tensor],
    rollout: Rollout,
    batch_size: int | None = None,
    columns: tuple[int, ...] = (),
) -> Tensor:
    """score_B of a rollout's own tokens, never of re-tokenised text; score_BK of a module that gives `columns` (K,)."""
    device = rollout.prompt_ids_BP.device
    batch_size = batch_size or BATCH.get(device.type, BATCH["cuda"])
    scores = torch.zeros(len(rollout), *columns, device=device)
    with torch.no_grad():
        for rows in by_length(rollout.length_B(), batch_size):
            part = rollout[rows].trim()
            scores[rows] = module(part.input_ids_BN(), part.mask_BN())
    return scores


def by_length(length_B: Tensor, size: int, tokens: int | None = None) -> Iterator[Tensor]:
    """Row numbers in groups of like length, so that little padding is computed; the longest first.

    A group has at most `size` rows and, padded to its longest, at most `tokens` tokens, but one row at least. What
    the first group leaves free has room for every other, and if memory is short, it is so at once.
    """
    order = length_B.argsort(descending=True, stable=True)
    if tokens is None:
        yield from order.split(size)
        return
    lengths, first = length_B[order].tolist(), 0
    for last in range(1, len(lengths)):
        rows = last - first + 1
        if rows > size or rows * lengths[first] > tokens:
            yield order[first:last]
            first = last
    yield order[first:]
