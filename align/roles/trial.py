"""A method tried on a model of no weights (the meta device), so that what cannot be is said before anything loads."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from align.errors import AlignError
from align.peft.adalora import whole_ranks
from align.peft.prompts import prompted
from align.peft.quantized import plain_config
from align.peft.routes import changes_the_base
from align.roles.adapter import for_task
from align.roles.folder import CAUSAL, Folder

SHOWN = 12
WEIGHTS = "adapter_model.safetensors"


def check_method(folder: Folder, peft: PeftConfig, key: str) -> None:
    """Raises AlignError where the method does not go with the model under `folder`, with the names that exist there."""
    model = weightless(folder)
    if model is None:
        return
    names = [name for name, _ in model.named_modules() if name]
    for setting in ("target_modules", "modules_to_save", "feedforward_modules"):
        check_names(getattr(peft, setting, None), names, model, f"{key}.peft.{setting}")
    try:
        _tried(model, for_task(peft, folder.kind, folder.path))
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise AlignError(
            f"{key}.peft: {type(peft).__name__} does not go with this model: {reason}\n"
            f"  its linear layers: {linear_names(model)}"
        ) from error


def check_names(given: object, names: list[str], model: nn.Module, key: str) -> None:
    """Every module that is named in a list is one that exists; a word or a pattern is PEFT's to read."""
    if not given or isinstance(given, str):
        return
    for name in sorted(set(given) - {"score", "classifier", "all-linear"}):
        if not any(one == name or one.endswith(f".{name}") for one in names):
            near = difflib.get_close_matches(name, {one.rpartition(".")[2] for one in names}, n=1)
            nearest = f"nearest: {near[0]}; " if near else ""
            raise AlignError(
                f"{key}: {name} matches nothing in this model\n  {nearest}its linear layers: {linear_names(model)}"
            )


def check_fits(folder: Folder, key: str) -> None:
    """Raises AlignError where the adapter in `folder` was made on a base of another shape than the one it names."""
    file = Path(folder.path) / WEIGHTS
    if folder.base is None or not file.exists():
        return
    model, config = weightless(folder), PeftConfig.from_pretrained(folder.path)
    if model is None:
        return
    try:
        adapted = _tried(model, config)
    except ValueError:
        return
    if adapted is None or prompted(adapted):
        return
    with whole_ranks(config):
        here = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    with safe_open(str(file), "pt") as saved:
        for name in saved.keys():
            shape = tuple(saved.get_slice(name).get_shape())
            if name in here and here[name] != shape:
                raise AlignError(
                    f"{key}: the adapter in {folder.path} was made on another base than {folder.base}:\n"
                    f"  {name} is {shape} there and would be {here[name]} here\n"
                    "  write the right base into its adapter_config.json (base_model_name_or_path)"
                )


def weightless(folder: Folder) -> PreTrainedModel | None:
    """The model under `folder` on the meta device; None where its config alone does not say what it is."""
    if not folder.local:
        return None
    try:
        config = plain_config(AutoConfig.from_pretrained(folder.base or folder.path))
        if folder.kind != CAUSAL:
            config.num_labels = 1
        auto = AutoModelForCausalLM if folder.kind == CAUSAL else AutoModelForSequenceClassification
        with torch.device("meta"):
            return auto.from_config(config)
    except (ValueError, OSError):
        return None


def linear_names(model: nn.Module) -> str:
    """The last parts of the names of a model's linear layers, in their order."""
    found = [n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear) or hasattr(m, "nf")]
    return ", ".join(list(dict.fromkeys(found))[:SHOWN])


def _tried(model: PreTrainedModel, config: PeftConfig) -> PeftModel | None:
    """The model with the adapter; None for a method that computes with weights at once."""
    if changes_the_base(config):
        config.init_lora_weights = True
    config.base_model_name_or_path = None  # PEFT warns of another
    try:
        with torch.device("meta"):
            return get_peft_model(model, config)
    except RuntimeError:
        return None
