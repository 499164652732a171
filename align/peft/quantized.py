"""Bases of 4-bit weights, under adapters in full precision: QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

A base is quantised once by bitsandbytes and saved; config.json says what it is, so that whatever loads the folder,
transformers and PEFT alone too, has the same weights. Merging, and an engine, take the weights that those stand
for: a merge into four bits would round the update away.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from align.errors import AlignError
from align.installed import require
from align.peft.merging import plain_name

KINDS = ("nf4", "fp4")
SIT_ON_IT = {
    "ADALORA", "BOFT", "BOTTLENECK", "HIRA", "IA3", "LN_TUNING", "LORA", "MISS", "OFT", "P_TUNING", "PREFIX_TUNING",
    "PROMPT_TUNING", "RANDLORA", "VERA",
}  # fmt: skip
"""Methods that PEFT (0.21) has layers of for 4-bit weights, or that touch none; the others fail in the first pass."""


def on_quantized(method: PeftConfig, kind: str | None) -> PeftConfig:
    """The method with the wish that its base be quantised, which PEFT's config has no field for; in place."""
    method.quantize = kind
    return method


def wanted(method: PeftConfig | None) -> str | None:
    """Quantisation that the method wants for its base; None for none."""
    return getattr(method, "quantize", None)


def check_wanted(method: PeftConfig, key: str) -> None:
    """Raises AlignError for an unknown kind, a method that cannot sit on it, and without bitsandbytes."""
    kind = wanted(method)
    if kind is None:
        return
    if kind not in KINDS:
        raise AlignError(f"{key}.quantize={kind}: use {' or '.join(KINDS)}")
    require("bitsandbytes", f"{key}.quantize={kind}", f"{key}.quantize=null")
    check_sits(method, key)


def check_sits(method: PeftConfig, key: str) -> None:
    """Raises AlignError where PEFT has no layer of this method for quantised weights."""
    start = getattr(method, "init_lora_weights", True)
    name, instead = method.peft_type.value, f"peft@{key}=qlora"
    if isinstance(start, str) and start not in ("gaussian", "orthogonal"):
        raise AlignError(f"{key}: init_lora_weights={start} needs a base in full precision\n  use {instead}")
    if name not in SIT_ON_IT:
        raise AlignError(f"{key}: PEFT has no {name} for a base of quantised weights\n  use {instead}")


def told_by(config: dict[str, Any]) -> str | None:
    """Quantisation of the model of this config.json; None where its weights are plain."""
    found = config.get("quantization_config")
    return found.get("bnb_4bit_quant_type", found.get("quant_method", "quantised")) if found else None


def is_quantized(model: nn.Module) -> bool:
    return any(_holds_codes(module) for module in model.modules())


def settings(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """For `from_pretrained`: 4-bit weights, whose scales are quantised too, computed with in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def computing_in(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Sets what quantised layers compute in, and keeps their weights as they are; in place.

    bitsandbytes (0.50) packs the weights for AVX512-BF16 in the first pass in evaluation mode; from then on
    gradients and merged weights are noise.
    """
    for module in model.modules():
        if _holds_codes(module) and hasattr(module, "compute_dtype"):
            module.compute_dtype, module.compute_type_is_set = dtype, True
            module.support_avx512bf16_for_cpu = False
    return model


def plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a model's config without a word of quantisation."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


@torch.no_grad()
def plain_tensors(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name in the plain model, tensor) of the base under LoRA or nothing: what quantised weights stand for."""
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if name := plain_name(f"{path}.{leaf}"):
                whole = leaf == "weight" and _holds_codes(module)
                tensor = dequantize_module_weight(module) if whole else parameter.data
                yield name, tensor.to(dtype)


def dequantized(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A new model of the plain weights that those of `model`, which has no adapter, stand for; frozen."""
    saved = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    state = {**buffers, **dict(plain_tensors(model, dtype))}
    new = type(model).from_pretrained(None, config=plain_config(model.config), state_dict=state, dtype=dtype)
    return new.requires_grad_(False).eval()


def _holds_codes(module: nn.Module) -> bool:
    """A layer of bitsandbytes', known by its class's module, so that nothing is imported for it."""
    return type(module).__module__.startswith("bitsandbytes.nn")
