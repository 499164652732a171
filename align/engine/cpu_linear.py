"""One choice of kernel for the linear layers of all models of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from align.config.choices import MEASURED
from align.engine.linear import choose_linear, has_onednn, measurable, use_fast_linears


@dataclass
class CpuLinear:
    """`auto` is settled by the first model that it is applied to, and stays."""

    kind: str = "torch"
    earlier: tuple[str, str] | None = None
    """What `auto` is settled to instead of measuring: the kind that was measured before, and the card that tells."""
    origin: str = "cpu_linear"
    """Where the kind comes from: the key, a measurement (of this run, or the card of another), nothing to measure."""

    def apply(self, model: nn.Module, tell: Callable[[str], None] = lambda line: None) -> None:
        """Gives the model's linear layers the chosen kernel, in place; only float32 on CPU has a choice."""
        if self.kind == "auto":
            tell(self._settle(model))
        if self.kind == "onednn":
            choose_linear(model, "onednn")  # refuses a torch without the kernel
            use_fast_linears(model)

    def facts(self) -> dict[str, str]:
        """For a stage's card.json."""
        return {"kind": self.kind, "from": self.origin}

    def _settle(self, model: nn.Module) -> str:
        if self.earlier and (self.earlier[0] != "onednn" or has_onednn()):
            self.kind, self.origin = self.earlier
            return f"linear layers by {self.kind}, as measured before ({self.origin})"
        self.origin = MEASURED if measurable(model) else "nothing to measure"
        self.kind, said = choose_linear(model, "auto")
        return said
