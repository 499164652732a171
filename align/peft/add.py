"""Further adapters on a model that has one: a role's own, a frozen copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from align.peft.prompts import copy_encoder, prompted
from align.peft.switch import use_adapter

REFERENCE = "ref"


@torch.no_grad()
def computes_nothing_yet(model: PeftModel) -> bool:
    """The adapter leaves the base's function as it is, to the bit: tried on eight tokens.

    Not so for what does not start at identity, such as PiSSA and prefixes, and for what rounds on the way (DoRA).
    """
    if prompted(model):
        return False
    trunk = model.get_base_model().base_model
    ids = torch.arange(8, device=model.device)[None] % model.config.vocab_size
    found = []
    for name in ("default", None):
        with use_adapter(model, name):
            found.append(trunk(ids, use_cache=False).last_hidden_state)
    return torch.equal(*found)


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
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = not config.is_prompt_learning  # of some methods only one adapter of a model may train
    add_adapter(model, name, config)
    if config.is_prompt_learning:
        copy_encoder(model, name)
        return
    _copy_weights(model, name)


def add_trained(model: PeftModel, name: str, seed: int, fresh: bool) -> None:
    """Adds an adapter with the settings of `default`, which trains, too.

    `fresh`: it starts as `default` would have after `torch.manual_seed(seed)`; else with the weights that it has.
    """
    torch.manual_seed(seed)
    add_adapter(model, name, model.peft_config["default"], trained=True)
    if not fresh:
        _copy_weights(model, name)


def trained_of(model: PeftModel, name: str) -> list[nn.Parameter]:
    """The parameters of adapter `name` that train."""
    return [p for path, p in model.named_parameters() if p.requires_grad and name in path.split(".")]


def _copy_weights(model: PeftModel, name: str) -> None:
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name="default"), adapter_name=name)
