"""The bottleneck, and the layers of a model that have some: a projection followed by one, a block beside one.

Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN

from bottleneck_adapters.config import BottleneckConfig

BASE = "__base__"  # PEFT's name for rows without an adapter


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module of the model with a bottleneck for each adapter: scaling · up(dropout(act(down(x)))).

    PEFT finds an adapter's weights by its name as the last but one in a parameter's path.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_settings", "bottleneck_act")

    def __init__(self, base_layer: nn.Module, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.width = width
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_settings: dict[str, BottleneckConfig] = {}
        self.bottleneck_act: dict[str, nn.Module] = {}
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = []
        self._disable_adapters = False

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Adds an adapter, where the base layer's weights are, and makes it the active one if it is the first."""
        size = config.size(self.width)
        at = next(self.base_layer.parameters()).device
        self.bottleneck_down[adapter_name] = nn.Linear(self.width, size, device=at)
        self.bottleneck_up[adapter_name] = nn.Linear(size, self.width, device=at)
        self.bottleneck_settings[adapter_name] = config
        self.bottleneck_act[adapter_name] = ACT2FN[config.non_linearity]
        self.reset_parameters(adapter_name)
        self.set_adapter(self.active_adapters or [adapter_name], inference_mode=config.inference_mode)

    def reset_parameters(self, adapter_name: str) -> None:
        """He et al.: `down` as a new linear layer's weights, `up` zero, so that nothing is added at first."""
        down, up = self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name]
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        if self.bottleneck_settings[adapter_name].init_weights:
            nn.init.zeros_(up.weight)
        else:
            nn.init.kaiming_uniform_(up.weight, a=math.sqrt(5))
        nn.init.zeros_(down.bias)
        nn.init.zeros_(up.bias)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError("a bottleneck adapter has a non-linearity: no weight of the model can hold it")

    unmerge = merge

    def forward(self, x_BTD: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """The base layer's output and what adapters add: the active ones to all rows, or row i's `adapter_names[i]`."""
        y_BTD = self.base_layer(x_BTD, *args, **kwargs)
        if self.disable_adapters:
            return y_BTD
        if adapter_names is None:
            for name in self.active_adapters:
                if name in self.bottleneck_down:
                    y_BTD = self.add(name, x_BTD, y_BTD)
            return y_BTD
        if len(adapter_names) != len(y_BTD):
            raise ValueError(f"{len(adapter_names)} adapter names for {len(y_BTD)} rows")
        for name in dict.fromkeys(adapter_names):
            if name in self.bottleneck_down:
                rows = torch.tensor([i for i, other in enumerate(adapter_names) if other == name], device=y_BTD.device)
                y_BTD = y_BTD.index_copy(0, rows, self.add(name, x_BTD[rows], y_BTD[rows]))
        return y_BTD

    def add(self, name: str, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """`y_BTD`, the base layer's output from `x_BTD`, with adapter `name`."""
        raise NotImplementedError

    def bottleneck(self, name: str, h_BTD: Tensor) -> Tensor:
        """Output of adapter `name` for its input."""
        settings, down, up = self.bottleneck_settings[name], self.bottleneck_down[name], self.bottleneck_up[name]
        inside = self.bottleneck_act[name](down(h_BTD.to(down.weight.dtype)))
        inside = nn.functional.dropout(inside, settings.dropout, self.training)
        return (settings.scaling * up(inside)).to(h_BTD.dtype)

    def __repr__(self) -> str:
        return "bottleneck." + super().__repr__()


class Sequential(BottleneckLayer):
    """An adapter reads what the layer puts out; several active ones stand one after the other."""

    def add(self, name: str, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        return y_BTD + self.bottleneck(name, y_BTD)


class Parallel(BottleneckLayer):
    """An adapter reads what the block takes in; what several active ones add is summed."""

    def add(self, name: str, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        return y_BTD + self.bottleneck(name, x_BTD)
