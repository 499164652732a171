"""Safe switching of the adapters of one PEFT model.

PEFT's own `disable_adapter` and `set_adapter` change `requires_grad` on the way (peft #3447): a frozen
adapter starts to train, or a trained one stops. This context sets only which adapter computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper


@contextmanager
def use_adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """Inside, `model` computes with adapter `name` (None: the plain base); nothing else changes.

    Do not leave it between a forward pass and its backward pass under gradient checkpointing.
    """
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
