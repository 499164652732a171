"""Models out of their folders: plain, with an adapter merged in, with quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from align.errors import AlignError
from align.peft import quantized
from align.peft.routes import mergeable
from align.roles.adapter import for_task, take_weights
from align.roles.folder import CAUSAL, Folder, inspect


def look(path: str, key: str, kinds: tuple[str, ...]) -> Folder:
    """The folder at `path`, which must be of one of the kinds."""
    for kind in kinds[:-1]:
        try:
            return inspect(path, f"{key}.path", kind)
        except AlignError:
            continue
    return inspect(path, f"{key}.path", kinds[-1])


def load_plain(path: str, head: str, dtype: torch.dtype, **more: Any) -> PreTrainedModel:
    """The whole model at `path` with the wanted head, in evaluation mode and with no dropout; frozen."""
    options: dict[str, Any] = {"dtype": dtype, **_no_dropout(path), **more}
    if head == CAUSAL:
        model = AutoModelForCausalLM.from_pretrained(path, **options)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **options)
    return quantized.computing_in(model, dtype).requires_grad_(False).eval()


def save_quantized(path: str, kind: str, how: str, dtype: torch.dtype, folder: Path) -> str:
    """Saves the whole model at `path` with quantised weights; where it lies."""
    model = load_plain(path, kind, dtype, quantization_config=quantized.settings(how, dtype))
    model.save_pretrained(folder)
    return str(folder.resolve())


def load_dequantized(path: str, head: str, dtype: torch.dtype) -> PreTrainedModel:
    """As `load_plain`; where the weights are quantised, the plain ones that they stand for."""
    model = load_plain(path, head, dtype)
    return quantized.dequantized(model, dtype) if quantized.is_quantized(model) else model


def load_merged(folder: Folder, head: str, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    """The model of a folder with its adapter, if it has one, merged in; and in words what was done."""
    model = load_dequantized(folder.base or folder.path, head, dtype)
    if folder.base is None:
        return model, ""
    if head == folder.kind:
        wrapped = PeftModel.from_pretrained(model, folder.path)
    else:
        wrapped = get_peft_model(model, for_task(PeftConfig.from_pretrained(folder.path), head, folder.base))
        take_weights(wrapped, folder.path)
    return wrapped.merge_and_unload(safe_merge=True).requires_grad_(False), f"{folder.path}, its adapter merged"


def load_frozen(folder: Folder, dtype: torch.dtype = torch.float32) -> PreTrainedModel | PeftModel:
    """What a folder holds, to compute alone: an adapter is merged in float32 if it can be, else sits on its base.

    Quantised weights stay so.
    """
    if folder.base is None:
        return load_plain(folder.path, folder.kind, dtype)
    if quantized.told_by(folder.config()) or not mergeable(PeftConfig.from_pretrained(folder.path)):
        model = PeftModel.from_pretrained(load_plain(folder.base, folder.kind, dtype), folder.path)
        return model.requires_grad_(False).eval()
    return load_merged(folder, folder.kind, torch.float32)[0].to(dtype)


def _no_dropout(path: str) -> dict[str, float]:
    """Every dropout rate of a model's config set to 0: PPO compares passes that must be the same function."""
    config = AutoConfig.from_pretrained(path).to_dict()
    rates = [name for name, value in config.items() if isinstance(value, float) and _is_dropout(name)]
    return {name: 0.0 for name in rates if config[name] > 0}


def _is_dropout(name: str) -> bool:
    return "dropout" in name or name.endswith("pdrop")
