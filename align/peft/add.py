"""Further adapters on a model that has one: a role's own, a frozen copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

REFERENCE = "ref"


def computes_nothing_at_first(config: PeftConfig) -> bool:
    """A fresh adapter of this kind leaves the base's function as it is, and the base's weights too."""
    return isinstance(config, LoraConfig) and config.init_lora_weights in (True, "gaussian") and config.bias == "none"


def add_adapter(model: PeftModel, name: str, config: PeftConfig, trained: bool = False) -> None:
    """Adds a new adapter, which trains or not; what trained before still does, and the rest still does not.

    PEFT's own may change both, and adds its layers in training mode (0.21): the model is put into evaluation
    mode. The active adapter stays the active one.
    """
    with kept_trainable(model, trained):
        model.add_adapter(name, copy.deepcopy(config))
    model.eval()


@contextmanager
def kept_trainable(model: PeftModel, new: bool = False) -> Iterator[None]:
    """What trains before trains afterwards, and nothing else but, if `new`, what was added inside."""
    before = {id(p): p.requires_grad for p in model.parameters()}
    yield
    for parameter in model.parameters():
        parameter.requires_grad_(before.get(id(parameter), new))


def add_frozen_copy(model: PeftModel, name: str) -> None:
    """Adds a copy of the `default` adapter, with the same weights, that never trains."""
    add_adapter(model, name, model.peft_config["default"])
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name="default"), adapter_name=name)
