"""An adapter's settings and weights, on their way from one model to another, whose head may differ."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights

from align.errors import AlignError
from align.peft.prompts import load_encoder, prompted
from align.roles.folder import CAUSAL, SCORE

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
    """Where two PEFT configurations of resolved targets differ, in words; '' where they agree."""
    if mine.peft_type != theirs.peft_type:
        return f"{theirs.peft_type.value} there, {mine.peft_type.value} asked for"
    ours, saved = (_beside_a_head(getattr(config, "modules_to_save", None)) for config in (mine, theirs))
    if ours != saved:
        return f"modules_to_save is {saved} there, {ours} asked for"
    one, other = mine.to_dict(), theirs.to_dict()
    for name in sorted(one.keys() - NOT_SETTINGS):
        ours, saved = (sorted(v) if isinstance(v, set | list) else v for v in (one[name], other.get(name)))
        if ours != saved:
            return f"{name} is {saved} there, {ours} asked for"
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
