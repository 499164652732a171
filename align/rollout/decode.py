"""Token by token with a cache, by transformers' own forward: what `generate` does, without the rows that are done.

`generate` computes every row to the end of the longest, and copies all keys and values for each new token.

Shapes: B rows, P prompt, T response, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from align.peft.prompts import embedded, length_of
from align.types import Sampling

STILL_WRITING = 0.8
"""Finished rows leave when no more than this share is left: leaving copies the cache."""


class Sampler(Protocol):
    def draw(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]: ...
    def keep(self, rows: list[int]) -> None: ...


OWN_WAY_OF_A_STATIC_CACHE = ("bloom",)
"""Models (transformers 5) that prepare their inputs in the usual way for every cache but one that is not used here."""


def can_decode(model: PreTrainedModel) -> bool:
    """The model takes the usual inputs: one that prepares them in its own way is left to `generate`."""
    usual = type(model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation
    usual = usual or model.config.model_type in OWN_WAY_OF_A_STATIC_CACHE
    return usual and not model.config.is_encoder_decoder and not model._is_stateful


def decode(
    model: PreTrainedModel,
    ids_BP: Tensor,
    mask_BP: Tensor,
    sampler: Sampler,
    sampling: Sampling,
    before: Tensor | Cache | None = None,
) -> tuple[Tensor, Tensor]:
    """ids_BT and logp_BT, each row up to its first stop token; what lies behind is of no meaning.

    `before` stands before every row: embeddings of virtual tokens, or their keys and values.
    """
    rows_B = torch.arange(len(ids_BP), device=ids_BP.device)
    ids_BT = ids_BP.new_zeros(len(ids_BP), sampling.max_new_tokens)
    logp_BT = torch.zeros(ids_BT.shape, device=ids_BP.device)
    virtual = length_of(before)
    mask_BN = torch.cat([ids_BP.new_ones(len(ids_BP), virtual), mask_BP.long(), torch.ones_like(ids_BT)], dim=1)
    takes = inspect.signature(model.forward).parameters
    more = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    stop = torch.tensor(sampling.stop_ids, device=ids_BP.device)
    cache = _cache(model, mask_BN.shape[1])
    writing_B, feed = torch.ones_like(rows_B, dtype=torch.bool), {"input_ids": ids_BP}
    if isinstance(before, Cache):
        for number, layer in enumerate(before.layers):
            cache.update(layer.keys, layer.values, number)
    elif before is not None:
        feed = {"inputs_embeds": embedded(model, before, ids_BP)}
    for t in range(sampling.max_new_tokens):
        known = virtual + ids_BP.shape[1] + t
        if "position_ids" in takes:
            new = next(iter(feed.values())).shape[1]
            more["position_ids"] = (mask_BN[:, :known].cumsum(1) - 1).clamp(min=0)[:, -new:]
        output = model(**feed, attention_mask=mask_BN[:, :known], past_key_values=cache, use_cache=True, **more)
        chosen_B, logp_BT[rows_B, t] = sampler.draw(output.logits[:, -1])
        ids_BT[rows_B, t] = chosen_B
        writing_B = writing_B & ~torch.isin(chosen_B, stop)
        left = int(writing_B.sum())
        if left == 0:
            break
        if left <= STILL_WRITING * len(rows_B):
            stay = writing_B.nonzero().squeeze(1)
            cache.reorder_cache(stay)
            sampler.keep(stay.tolist())
            rows_B, mask_BN, chosen_B, writing_B = rows_B[stay], mask_BN[stay], chosen_B[stay], writing_B[stay]
        feed = {"input_ids": chosen_B[:, None]}
    return ids_BT[:, : t + 1], logp_BT[:, : t + 1]


class _Room(DynamicLayer):
    """Keys and values with room for what is to come, written in place."""

    _layer_type = None  # else transformers takes this class for every model's full attention

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = [x.new_empty(*x.shape[:2], self.size, x.shape[3]) for x in (key_states, value_states)]
        first = self.get_seq_length()
        last = first + key_states.shape[-2]
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, first:last] = new
        self.keys, self.values = (room[:, :, :last] for room in self.rooms)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        length = self.get_seq_length()
        self.rooms = [room[beam_idx] for room in self.rooms]
        self.keys, self.values = (room[:, :, :length] for room in self.rooms)


def _cache(model: PreTrainedModel, size: int) -> Cache:
    """The model's own kind of cache, with room in the layers that attend to everything."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_Room(size) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
