"""Models out of their folders: plain, with an adapter merged in, with quantised weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

from align.errors import AlignError
from align.peft import quantized
from align.peft.prompts import load_encoder, prompted
from align.peft.routes import mergeable
from align.roles.folder import CAUSAL, SCORE, Folder, inspect


def look(path: str, key: str, kinds: tuple[str, ...]) -> Folder:
    """The folder at `path`, which must be of one of the kinds."""
    for kind in kinds[:-1]:
        try:
            return inspect(path, f"{key}.path", kind)
        except AlignError:
            continue
    return inspect(path, f"{key}.path", kinds[-1])


def auto_class(path: str, head: str) -> type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]:
    """The class of transformers that loads the model at `path` with a head.

    Where transformers (5.19) has no class with a score, such as for Granite, one is made of its parts and registered.
    """
    if head == CAUSAL:
        return AutoModelForCausalLM
    config = type(AutoConfig.from_pretrained(path))
    if config not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and config in MODEL_FOR_CAUSAL_LM_MAPPING:
        causal = MODEL_FOR_CAUSAL_LM_MAPPING[config]
        family = next(cls for cls in causal.__mro__[1:] if issubclass(cls, PreTrainedModel))
        name = causal.__name__.removesuffix("ForCausalLM") + "ForSequenceClassification"
        facts = {"config_class": config, "base_model_prefix": causal.base_model_prefix}
        scored = type(name, (GenericForSequenceClassification, family), facts)
        AutoModelForSequenceClassification.register(config, scored, exist_ok=True)
    return AutoModelForSequenceClassification


def load_plain(path: str, head: str, dtype: torch.dtype, **more: Any) -> PreTrainedModel:
    """The whole model at `path` with the wanted head, in evaluation mode and with no dropout; frozen."""
    labels = {} if head == CAUSAL else {"num_labels": 1}
    model = auto_class(path, head).from_pretrained(path, dtype=dtype, **labels, **_one_function(path), **more)
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
    """Load a folder's model, not to be trained: an adapter is merged in float32 if it can be, else sits on its base.

    Quantised weights stay so.
    """
    if folder.base is None:
        return load_plain(folder.path, folder.kind, dtype)
    if quantized.told_by(folder.config()) or not mergeable(PeftConfig.from_pretrained(folder.path)):
        model = PeftModel.from_pretrained(load_plain(folder.base, folder.kind, dtype), folder.path)
        return model.requires_grad_(False).eval()
    return load_merged(folder, folder.kind, torch.float32)[0].to(dtype)


def _one_function(path: str) -> dict[str, Any]:
    """Settings under which a model's passes are the function of its weights, each time: every dropout rate is 0.

    Experts have no loss of their own, which TRL (1.16) leaves on in what it trains, and which fails on a cache.
    Attention is Gemma 2's own, with capped logits, which transformers' (5.19) faster kernel leaves out.
    """
    config = AutoConfig.from_pretrained(path).to_dict()
    settings: dict[str, Any] = {
        name: 0.0 for name, rate in config.items() if isinstance(rate, float) and _is_dropout(name)
    }
    if config.get("output_router_logits"):
        settings["output_router_logits"] = False
    if config.get("attn_logit_softcapping"):
        settings["attn_implementation"] = "eager"
    return settings


def _is_dropout(name: str) -> bool:
    return "dropout" in name or name.endswith("pdrop")


TASK = {CAUSAL: "CAUSAL_LM", SCORE: "SEQ_CLS"}
NOT_SETTINGS = {
    "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
    "modules_to_save", "exclude_modules", "runtime_config", "peft_type",
    "total_step", "tinit", "tfinal", "init_lora_weights",
}  # fmt: skip


def for_task(peft: PeftConfig, head: str, base: str) -> PeftConfig:
    config = copy.deepcopy(peft)
    config.task_type = TASK[head]
    config.base_model_name_or_path = base
    config.inference_mode = False
    if head == CAUSAL and getattr(config, "modules_to_save", None):
        config.modules_to_save = _beside_a_head(config.modules_to_save) or None
    return config


def settings_difference(mine: PeftConfig, theirs: PeftConfig) -> str:
    """First difference of two PEFT configurations of resolved targets, in words; '' where they agree."""
    if mine.peft_type != theirs.peft_type:
        return f"{theirs.peft_type.value} there, {mine.peft_type.value} in the settings"
    ours, saved = (_beside_a_head(getattr(config, "modules_to_save", None)) for config in (mine, theirs))
    if ours != saved:
        return f"modules_to_save is {saved} there, {ours} in the settings"
    one, other = mine.to_dict(), theirs.to_dict()
    for name in sorted(one.keys() - NOT_SETTINGS):
        ours, saved = (sorted(v) if isinstance(v, set | list) else v for v in (one[name], other.get(name)))
        if ours != saved:
            return f"{name} is {saved} there, {ours} in the settings"
    return ""


def take_weights(model: PeftModel, path: str, name: str = "default") -> None:
    """Puts the adapter saved at `path` into adapter `name` of `model`, whose head may be another and is kept."""
    if prompted(model):
        load_encoder(model, path, name)
        _take_score(model, path, name)
        return
    mine, theirs = get_peft_model_state_dict(model, adapter_name=name), load_peft_weights(path, device="cpu")
    heads = {key for key in mine if key.endswith("score.weight")}
    missing = mine.keys() - theirs.keys() - heads
    if missing:
        raise AlignError(f"the adapter of {path} lacks weights, such as {sorted(missing)[0]}")
    weights = {key: theirs.get(key, mine[key]) for key in mine}
    set_peft_model_state_dict(model, weights, adapter_name=name)


def _take_score(model: PeftModel, path: str, name: str) -> None:
    """The score head of the adapter at `path`, where both have one."""
    score = getattr(model.get_base_model(), "score", None)
    saved = [tensor for key, tensor in load_peft_weights(path, device="cpu").items() if key.endswith("score.weight")]
    if saved and hasattr(score, "modules_to_save"):
        with torch.no_grad():
            score.modules_to_save[name].weight.copy_(saved[0])


def _beside_a_head(modules: Iterable[str] | None) -> list[str]:
    """The modules that train in full, without a score head, which comes and goes with the task."""
    return sorted(set(modules or ()) - {"score", "classifier"})
