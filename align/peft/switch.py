"""Safe switching of the adapters of one PEFT model: for a whole batch, or row by row.

PEFT's own `disable_adapter` and `set_adapter` change `requires_grad` on the way (peft #3447): a frozen
adapter starts to train, or a trained one stops. These contexts set only which adapter computes. Under
gradient checkpointing a backward pass computes layers again: leave a context after it, not before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

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
    """Whether rows of one batch can go through different adapters: plain LoRA throughout, or a method that says so.

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
            yield
    finally:
        tuner.training = training
        for module in model.modules():
            for handle in [h for h in module._forward_pre_hooks if h not in known[id(module)]]:
                module._forward_pre_hooks.pop(handle)
                module._forward_pre_hooks_with_kwargs.pop(handle, None)
