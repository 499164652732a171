"""A frozen second copy of an adapter on the same base, and when the plain base serves instead."""

from __future__ import annotations

import copy

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

REFERENCE = "ref"


def computes_nothing_at_first(config: PeftConfig) -> bool:
    """A fresh adapter of this kind leaves the base's function as it is, and the base's weights too."""
    return isinstance(config, LoraConfig) and config.init_lora_weights in (True, "gaussian") and config.bias == "none"


def add_frozen_copy(model: PeftModel, name: str) -> None:
    """Adds a copy of the `default` adapter, with the same weights, that never trains."""
    trained = [p for p in model.parameters() if p.requires_grad]
    model.add_adapter(name, copy.deepcopy(model.peft_config["default"]))
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name="default"), adapter_name=name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
