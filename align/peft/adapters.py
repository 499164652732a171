"""Further adapters on a model that has one: a role's own, a frozen copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from align.peft.prompts import copy_encoder, prompted

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
    """Keep which parameters train: after the block the same ones do, and if `new` those that were added inside."""
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


BASE = "__base__"  # PEFT's name for rows without an adapter


@contextmanager
def use_adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """Inside, `model` computes with adapter `name` (None: the plain base); nothing else changes."""
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    before = [(m, m._active_adapter, m._disable_adapters) for m in layers]
    for layer in layers:
        layer._disable_adapters = name is None
        layer._active_adapter = layer._active_adapter if name is None else [name]
    try:
        yield
    finally:
        for layer, active, disabled in before:
            layer._active_adapter, layer._disable_adapters = active, disabled


def routable(model: PeftModel) -> bool:
    """Return True where rows of one batch can take different adapters: all are plain LoRA or a method that says so.

    PEFT 0.21 ignores the routing of most other methods without a word, and raises for DoRA.
    """
    return all(routes_rows(config) for config in model.peft_config.values())


def routes_rows(config: PeftConfig) -> bool:
    """`routable` of one method; one of one's own says so by an attribute `mixed_batches`."""
    if type(config) is LoraConfig:
        return not (config.use_dora or config.target_parameters or config.trainable_token_indices)
    return getattr(config, "mixed_batches", False)


@contextmanager
def routed(model: PeftModel, names: list[str | None]) -> Iterator[None]:
    """Inside, row i of a batch goes through adapter `names[i]` (None: the plain base), with gradients.

    Stay inside until after the backward pass. PEFT forbids this in training mode, a flag of its outermost
    tuner alone that is put back, and leaves its hooks behind when a pass raises (0.21): they are removed.
    """
    tuner = model.base_model
    training, tuner.training = tuner.training, False
    known = {id(module): set(module._forward_pre_hooks) for module in model.modules()}
    try:
        with tuner._enable_peft_forward_hooks(adapter_names=[BASE if name is None else name for name in names]):
            _name_tokens(model)
            yield
    finally:
        tuner.training = training
        for module in model.modules():
            for handle in [h for h in module._forward_pre_hooks if h not in known[id(module)]]:
                module._forward_pre_hooks.pop(handle)
                module._forward_pre_hooks_with_kwargs.pop(handle, None)


def _name_tokens(model: PeftModel) -> None:
    """Let layers that see a batch's tokens as rows, such as OPT's, route each token as its row; for `routed`'s hooks.

    Where a layer sees other rows, such as an expert's, PEFT refuses.
    """
    batch = [0, 0]

    def measure(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        batch[:] = (args[0] if args else kwargs["input"]).shape[:2]

    def spread(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple:
        names, (rows, tokens) = kwargs.get("adapter_names"), batch
        if names is not None and args[0].dim() == 2 and len(names) == rows != len(args[0]) == rows * tokens:
            kwargs = {**kwargs, "adapter_names": [name for name in names for _ in range(tokens)]}
        return args, kwargs

    model.get_base_model().get_input_embeddings().register_forward_pre_hook(measure, with_kwargs=True)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            module.register_forward_pre_hook(spread, with_kwargs=True)
