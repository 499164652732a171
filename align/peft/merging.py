"""A model's weights with its adapter merged, one tensor after the other; the base is as before, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor


@torch.no_grad()
def merged_tensors(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """(name in the plain model, tensor) of every parameter, the active adapter merged in float32 or the base's dtype.

    A tensor is gone with the next one: PEFT merges a layer into new tensors, which are dropped when the layer's
    own are put back. Taking away again what was added would drift (PEFT's `unmerge`).
    """
    base = model.get_base_model()
    layers = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    for home, together in groupby(layers.items(), lambda item: item[1].get_base_layer()):
        (name, layer), *inner = together  # experts have a layer for each of their parameters, one inside the other
        before = {key: parameter.data for key, parameter in home.named_parameters(recurse=False)}
        for one in (layer, *(one for _, one in inner)):
            one.merge(safe_merge=True)
        try:
            for key, parameter in layer.get_base_layer().named_parameters(recurse=False):
                yield plain_name(f"{name}.{key}"), parameter.data
        finally:
            if layer.get_base_layer() is not home:  # LN tuning swaps the whole layer
                layer.unmerge()
            for key, parameter in home.named_parameters(recurse=False):
                parameter.data = before[key]
            for one in (layer, *(one for _, one in inner)):
                one.merged_adapters.clear()
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


Factors = tuple[Tensor, Tensor]


def other_than_lora(method: PeftConfig) -> str:
    """Name of this method where no LoRA equals its adapters; '' where one does."""
    kind = method.peft_type.value
    if kind == "MISS" and method.init_weights == "bat":
        return "MISS with init_weights=bat"  # its change of a weight depends on the weight
    return "" if kind in FACTORS else kind


def rank_of(method: PeftConfig) -> int:
    """The largest rank of the LoRA."""
    kind = method.peft_type.value
    if kind == "LOHA":
        return max([method.r, *(method.rank_pattern or {}).values()]) ** 2
    return method.init_r if kind == "ADALORA" else method.r


@torch.no_grad()
def save_as_lora(model: PeftModel, directory: Path) -> None:
    """The `default` adapter's LoRA in PEFT's folder: adapter_config.json and adapter_model.safetensors, whole weights.

    Raises KeyError for a method that equals none.
    """
    factors = dict(_factors(model, "default"))
    rank = max(len(a_RI) for a_RI, _ in factors.values())
    others = {path: len(a_RI) for path, (a_RI, _) in factors.items() if len(a_RI) != rank}
    LoraConfig(
        r=rank, lora_alpha=rank, rank_pattern=others, alpha_pattern=others, target_modules=list(factors),
        task_type="CAUSAL_LM", inference_mode=True,
        base_model_name_or_path=model.peft_config["default"].base_model_name_or_path,
    ).save_pretrained(directory)  # fmt: skip
    state = {
        f"base_model.model.{path}.lora_{letter}.weight": factor.cpu().contiguous()
        for path, pair in factors.items()
        for letter, factor in zip("AB", pair, strict=True)
    }
    save_file(state, directory / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})


def _factors(model: PeftModel, name: str) -> Iterator[tuple[str, Factors]]:
    """(path of a layer in the plain model, a_RI and b_OR) of every layer that adapter `name` changes."""
    factors_of = FACTORS[model.peft_config[name].peft_type.value]
    for path, layer in model.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer) and name in layer._get_available_adapters():
            yield path, factors_of(layer, name)


def _adalora(layer: Any, name: str) -> Factors:
    scale = layer.scaling[name] / (layer.ranknum[name] + 1e-5)
    return layer.lora_A[name] * layer.lora_E[name] * scale, layer.lora_B[name]


def _loha(layer: Any, name: str) -> Factors:
    a_RI = layer.hada_w1_b[name][:, None] * layer.hada_w2_b[name][None]
    b_OR = layer.hada_w1_a[name][:, :, None] * layer.hada_w2_a[name][:, None]
    return a_RI.flatten(0, 1), layer.scaling[name] * b_OR.flatten(1, 2)


def _miss(layer: Any, name: str) -> Factors:
    d_RO = layer.miss_block[name]
    if layer.miss_fn == "mini":
        d_RO = d_RO.repeat(1, layer.out_features // d_RO.shape[1])
    rank = len(d_RO)
    ones_RI = torch.eye(rank, dtype=d_RO.dtype).repeat(1, -(-layer.in_features // rank))[:, : layer.in_features]
    return ones_RI, d_RO.T


def _vera(layer: Any, name: str) -> Factors:
    a_RI = layer.vera_lambda_d[name][:, None] * layer.vera_A[name][:, : layer.in_features]
    return a_RI, layer.vera_lambda_b[name][:, None] * layer.vera_B[name][: layer.out_features]


FACTORS: dict[str, Callable[[Any, str], Factors]] = {
    "ADALORA": _adalora, "LOHA": _loha, "MISS": _miss, "VERA": _vera,
}  # fmt: skip
