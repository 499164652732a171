"""The hooks of a method without a state: what others override."""

from __future__ import annotations

from peft import PeftConfig, PeftModel
from torch import Tensor


class Hooks:
    needs_gradients = False
    """`on_step` reads gradients after the optimizer's step; DeepSpeed has dropped them by then."""
    one_trained = False
    """PEFT trains one adapter of this method a model."""

    def plan(self, config: PeftConfig, steps: int | None, key: str) -> PeftConfig:
        return config

    def on_step(self, model: PeftModel, name: str, step: int) -> None:
        pass

    def extra_loss(self, model: PeftModel, name: str) -> Tensor | None:
        return None
