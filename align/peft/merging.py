"""A model's weights with its adapter merged, one tensor after the other; the base is as before, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor


@torch.no_grad()
def merged_tensors(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """(name in the plain model, tensor) of every parameter, the active adapter merged in float32 or the base's dtype.

    A tensor is gone with the next one: PEFT merges a layer into new tensors, which are dropped when the layer's
    own are put back. Taking away again what was added would drift (PEFT's `unmerge`).
    """
    base = model.get_base_model()
    layers = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        home = layer.get_base_layer()
        before = {key: parameter.data for key, parameter in home.named_parameters(recurse=False)}
        layer.merge(safe_merge=True)
        try:
            for key, parameter in layer.get_base_layer().named_parameters(recurse=False):
                yield plain_name(f"{name}.{key}"), parameter.data
        finally:
            if layer.get_base_layer() is not home:  # LN tuning swaps the whole layer
                layer.unmerge()
            for key, parameter in home.named_parameters(recurse=False):
                parameter.data = before[key]
            layer.merged_adapters.clear()
    inside = tuple(f"{name}." for name in layers)
    for name, parameter in base.named_parameters(remove_duplicate=False):
        if not name.startswith(inside) and (known := plain_name(name)):
            yield known, parameter.data


def plain_name(name: str) -> str:
    """The name in the plain model of a parameter under PEFT's `default` adapter; '' for one that has none there.

    A module that trains in full (`modules_to_save`) stands in the place of its original.
    """
    if any(mark in name for mark in (".original_module.", ".lora_", "trainable_tokens_")):
        return ""
    for wrapper in (".base_layer", ".modules_to_save.default", ".token_adapter"):
        name = name.replace(wrapper, "")
    return "" if ".modules_to_save." in name else name
