"""One choice of kernel for the linear layers of all models of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from align.engine.linear import choose_linear, use_fast_linears


@dataclass
class CpuLinear:
    """`auto` is settled by the first model that it is applied to, and stays."""

    kind: str = "torch"

    def apply(self, model: nn.Module, tell: Callable[[str], None] = lambda line: None) -> None:
        """Gives the model's linear layers the chosen kernel, in place; only float32 on CPU has a choice."""
        if self.kind == "auto":
            self.kind, said = choose_linear(model, "auto")
            tell(said)
        if self.kind == "onednn":
            choose_linear(model, "onednn")  # refuses a torch without the kernel
            use_fast_linears(model)
