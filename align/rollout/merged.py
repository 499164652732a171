"""A LoRA folded into its base's weights while transformers generates, and taken out again to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

ROW_BYTES = 2**22
"""Of merged weights, which stand beside the base, for each row that is written with them: about what a row's own cache
takes. A larger model, or one that writes few rows at a time because memory is short, keeps its adapter apart."""


@contextmanager
def merged(model: nn.Module, rows: int) -> Iterator[bool]:
    """Inside, every LoRA layer computes by one matrix; says whether. Nothing is left behind, by an exception either.

    Only plain float32 LoRA: in bfloat16 a merged weight is not the adapter's policy. The base's tensors are put
    aside, not written to, so that they come back bit for bit, and what shares their storage keeps it.
    """
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    if any(id(m.get_base_layer().weight) in embeddings for m in layers if isinstance(m, LoraLinear)):
        yield False  # a head tied to the embedding, which the adapter is not to change
        return
    if not layers or not all(map(_is_plain, layers)) or sum(_weight(m).nbytes for m in layers) > rows * ROW_BYTES:
        yield False
        return
    before = [_weight(layer).data for layer in layers]
    try:
        with torch.no_grad():
            for layer, own in zip(layers, before, strict=True):
                _weight(layer).data = own + layer.get_delta_weight(layer.active_adapters[0])
                layer._disable_adapters = True
        yield True
    finally:
        for layer, own in zip(layers, before, strict=True):
            _weight(layer).data = own
            layer._disable_adapters = False


def _is_plain(layer: BaseTunerLayer) -> bool:
    return (
        isinstance(layer, LoraLinear)
        and len(layer.active_adapters) == 1
        and layer.active_adapters[0] in layer.lora_A
        and not layer.lora_variant
        and not layer.lora_bias[layer.active_adapters[0]]
        and not layer.disable_adapters
        and not layer.merged
        and isinstance(layer.get_base_layer(), nn.Linear)
        and _weight(layer).dtype == torch.float32
        and not hasattr(_weight(layer), "ds_id")  # ZeRO-3 divides it
    )


def _weight(layer: BaseTunerLayer) -> nn.Parameter:
    return layer.get_base_layer().weight
