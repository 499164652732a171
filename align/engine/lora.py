"""LoRA layers whose forward and backward are one function: base, adapter, scaling and sum without steps between.

PEFT computes `base(x) + lora_B(lora_A(x)) * scaling` in five steps forward and as many back, each as wide as the
layer: a quarter of the time of a LoRA update. Here the narrow product is scaled and added on the way
(`addmm`), and the gradients to the input likewise.

    use_fast_loras(model)

Shapes: N rows of tokens, K inputs, M outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from align.engine.linear import OneDNNLinear, matmul_of


def use_fast_loras(model: nn.Module) -> int:
    """Makes every plain LoRA layer on a float32 `nn.Linear` one of these, in place; how many there were.

    Parameters, names and PEFT's own methods stay. What is not plain (other dtypes, variants such as DoRA, dropout
    while training, several adapters at once, autocast, ZeRO-3, a base that trains) goes PEFT's way.
    """
    layers = [m for m in model.modules() if type(m) is LoraLinear]
    for layer in layers:
        layer.__class__ = FastLora
    return len(layers)


@dataclass
class _Part:
    """Rows that go through one adapter."""

    rows: slice
    scaling: float


class FastLora(LoraLinear):
    """PEFT's LoRA layer with another forward."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = kwargs.get("adapter_names") or self.active_adapters
        if args or kwargs.keys() - {"adapter_names"} or not self._is_plain(x, set(names)):
            return super().forward(x, *args, **kwargs)
        self._check_forward_args(x, **kwargs)
        routed = "adapter_names" in kwargs
        parts, matrices = [], []
        for name, first, last in _runs(names, x) if routed else [(names[0], 0, x.numel() // x.shape[-1])]:
            if name in self.lora_A:
                parts.append(_Part(slice(first, last), self.scaling[name]))
                matrices += [self.lora_A[name].weight, self.lora_B[name].weight]
        base = self.base_layer
        return _Lora.apply(x, base.weight, base.bias, matmul_of(base), parts, *matrices)

    def _is_plain(self, x: Tensor, names: set[str]) -> bool:
        base = self.base_layer
        known = [name for name in names if name in self.lora_A]
        return bool(
            known
            and (len(names) == 1 or len(known) + ("__base__" in names) == len(names))
            and not self.disable_adapters
            and not self.merged
            and type(base) in (nn.Linear, OneDNNLinear)
            and not base.weight.requires_grad
            and not hasattr(base.weight, "ds_id")
            and x.dtype == base.weight.dtype == torch.float32
            and x.numel() > 0
            and not torch.is_autocast_enabled(x.device.type)
            and all(self._is_plain_adapter(name) for name in known)
        )

    def _is_plain_adapter(self, name: str) -> bool:
        a, b = self.lora_A[name], self.lora_B[name]
        return (
            name not in self.lora_variant
            and type(a) is type(b) is nn.Linear
            and b.bias is None
            and a.weight.dtype == b.weight.dtype == torch.float32
            and not hasattr(a.weight, "ds_id")
            and (isinstance(self.lora_dropout[name], nn.Identity) or not self.lora_dropout[name].training)
        )


def _runs(names: list[str], x: Tensor) -> list[tuple[str, int, int]]:
    """Each adapter's stretches of rows of tokens, from the names of the batch's rows."""
    tokens, found, first = x.numel() // (x.shape[0] * x.shape[-1]), [], 0
    for name, run in groupby(names):
        last = first + tokens * len(list(run))
        found.append((name, first, last))
        first = last
    return found


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_MK: Tensor, bias_M: Tensor | None, matmul: Callable, parts: list[_Part],
        *matrices: Tensor,
    ) -> Tensor:  # fmt: skip
        x_NK = x.reshape(-1, x.shape[-1])
        y_NM = matmul(x_NK, weight_MK)
        if bias_M is not None:
            y_NM += bias_M
        narrow = []
        for part, a_RK, b_MR in zip(parts, matrices[::2], matrices[1::2], strict=True):
            narrow.append(linear(x_NK[part.rows], a_RK))
            y_NM[part.rows].addmm_(narrow[-1], b_MR.t(), alpha=part.scaling)
        ctx.matmul, ctx.parts, ctx.shape = matmul, parts, x.shape
        trains = any(ctx.needs_input_grad[5:])
        ctx.save_for_backward(x_NK if trains else None, weight_MK, *matrices, *(narrow if trains else ()))
        return y_NM.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NK, weight_MK, *rest = ctx.saved_tensors
        count = len(ctx.parts)
        matrices, narrow = rest[: 2 * count], rest[2 * count :]
        grad_NM = grad.reshape(-1, grad.shape[-1])
        grad_x = ctx.matmul(grad_NM, weight_MK.t()) if ctx.needs_input_grad[0] else None
        found: list[Tensor | None] = []
        for number, part in enumerate(ctx.parts):
            a_RK, b_MR = matrices[2 * number : 2 * number + 2]
            wants_a, wants_b = ctx.needs_input_grad[5 + 2 * number : 7 + 2 * number]
            grad_PM = grad_NM[part.rows]
            grad_PR = None
            if wants_a or grad_x is not None:
                grad_PR = (grad_PM @ b_MR).mul_(part.scaling)
            if grad_x is not None:
                grad_x[part.rows].addmm_(grad_PR, a_RK)
            found.append(grad_PR.t() @ x_NK[part.rows] if wants_a else None)
            found.append((grad_PM.t() @ narrow[number]).mul_(part.scaling) if wants_b else None)
        return grad_x.view(ctx.shape) if grad_x is not None else None, None, None, None, None, *found
