"""Linear layers by oneDNN, where that is faster than torch's own matrix product.

On some AMD CPUs MKL, which torch's fp32 `nn.Linear` calls, takes twice oneDNN's time (Zen 5); on others the
two are equal (Zen 4: 0.9). So `auto` measures, on the model's own shapes.

    use_kernel("auto")     # once a run
    give_kernel(model)     # each model: the first one settles what auto is

Shapes: N rows, K inputs, M outputs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from align.config.choices import LINEARS, MEASURED
from align.errors import AlignError

WORTH = 0.8  # oneDNN must take less than this of torch's time: near 1, noise would choose, and a run would not repeat
NARROW = 64  # an adapter's A or B: its weight gradient takes up to 2.4 times as long by oneDNN (rank 16, Zen 4)
ROWS = 256
COMMONEST = 3
BUDGET_FLOPS = 1.2e10  # about a tenth of a second on one core


def onednn_matmul(x_NK: Tensor, weight_MK: Tensor) -> Tensor:
    """x @ weight.T in float32, by oneDNN, without autograd; either may be a transposed view.

    The operator is private to torch (`torch.compile` emits it): the only call of it is here.
    """
    return torch.ops.mkldnn._linear_pointwise(x_NK, weight_MK, None, "none", [], "")


def has_onednn() -> bool:
    """This build of torch has the operator (seen in torch 2.13)."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def matmul_of(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The matrix product, without autograd, that a linear layer computes with: for `ops.head_logprobs`."""
    return fast_matmul if isinstance(module, OneDNNLinear) else linear


def fast_matmul(x_NK: Tensor, weight_MK: Tensor) -> Tensor:
    """x @ weight.T by oneDNN where it can, else by torch."""
    return onednn_matmul(x_NK, weight_MK) if _fits(x_NK, weight_MK) else linear(x_NK, weight_MK)


class OneDNNLinear(nn.Linear):
    """nn.Linear with another kernel: the same parameters, name for name, so that state dicts, PEFT, copies and
    DeepSpeed see a linear layer. What the kernel cannot do (other dtypes and devices, autocast, no rows) goes
    torch's way."""

    def forward(self, x: Tensor) -> Tensor:
        if not _fits(x, self.weight) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return _Linear.apply(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight_MK: Tensor, bias_M: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight_MK.requires_grad else None, weight_MK)
        ctx.shape = x.shape
        y_NM = onednn_matmul(x.reshape(-1, x.shape[-1]), weight_MK)
        if bias_M is not None:
            y_NM += bias_M
        return y_NM.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_MK = ctx.saved_tensors
        grad_NM = grad.reshape(-1, grad.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad_x = onednn_matmul(grad_NM, weight_MK.t()).view(ctx.shape) if wants_x else None
        grad_weight = onednn_matmul(grad_NM.t(), x.reshape(-1, x.shape[-1]).t()) if wants_weight else None
        return grad_x, grad_weight, grad_NM.sum(0) if wants_bias else None


def use_fast_linears(model: nn.Module) -> int:
    """Makes every plain fp32 `nn.Linear` on the CPU one by oneDNN, in place; how many there were.

    The layers under PEFT's are among them; an adapter's own narrow matrices are not: torch is faster there.
    """
    layers = _layers(model)
    for layer in layers:
        layer.__class__ = OneDNNLinear
    return len(layers)


def choose_linear(model: nn.Module, kind: str = "auto") -> tuple[str, str]:
    """("torch" or "onednn", what was chosen in words); changes nothing.

    `auto` times both on the model's commonest shapes and takes oneDNN below 0.8 of torch's time. A run that
    is resumed must be given the kind it began with: the two round differently.
    Raises AlignError for an unknown kind, and for `onednn` where this torch has no such kernel.
    """
    if kind not in LINEARS:
        raise AlignError(f"cpu_linear={kind!r}: use one of {', '.join(LINEARS)}")
    if kind == "onednn" and not has_onednn():
        raise AlignError(f"cpu_linear=onednn: torch {torch.__version__} has no such kernel\n  use cpu_linear=torch")
    layers = _layers(model)
    if kind != "auto" or not measurable(model):
        return ("torch" if kind == "auto" else kind), f"linear layers by {'torch' if kind == 'auto' else kind}"
    share = _share(layers)
    chosen = "onednn" if share < WORTH else "torch"
    return chosen, f"linear layers by {chosen}: oneDNN takes {share:.2f} of torch's time here"


def measurable(model: nn.Module) -> bool:
    """There is a choice to measure: fp32 linear layers on the CPU, and both kernels."""
    return has_onednn() and bool(_layers(model))


def _layers(model: nn.Module) -> list[nn.Linear]:
    return [
        m for m in model.modules()
        if type(m) is nn.Linear and m.weight.dtype == torch.float32 and m.weight.device.type == "cpu"
        and min(m.in_features, m.out_features) >= NARROW
    ]  # fmt: skip


def _fits(x: Tensor, weight_MK: Tensor) -> bool:
    return (
        x.dtype == weight_MK.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.compiler.is_compiling()
    )


def _share(layers: list[nn.Linear]) -> float:
    """oneDNN's part of torch's time, forward and backward, on the commonest shapes, each as often as it occurs."""
    count: Counter[tuple[int, int, bool]] = Counter(
        (m.in_features, m.out_features, m.weight.requires_grad) for m in layers
    )
    common = count.most_common(COMMONEST)
    rows = int(BUDGET_FLOPS / (36 * sum(k * m for (k, m, _), _ in common)))  # 2 kernels x 3 rounds x 3 products x 2
    rows = max(16, min(ROWS, rows))
    took = {onednn_matmul: 0.0, linear: 0.0}
    generator = torch.Generator().manual_seed(0)  # a run that measures draws the numbers of one that does not
    for (inputs, outputs, trains), times in common:
        shapes = (rows, inputs), (outputs, inputs), (rows, outputs)
        x, weight, grad = (torch.randn(*shape, generator=generator) for shape in shapes)
        best = {matmul: float("inf") for matmul in took}
        for _ in range(3):  # the first warms up; in turn, so that a busy machine slows both
            for matmul in took:
                best[matmul] = min(best[matmul], _seconds(matmul, x, weight, grad, trains))
        for matmul in took:
            took[matmul] += times * best[matmul]
    return took[onednn_matmul] / took[linear]


@torch.no_grad()
def _seconds(
    matmul: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, grad: Tensor, trains: bool
) -> float:
    before = time.process_time()
    matmul(x, weight)
    matmul(grad, weight.t())
    if trains:
        matmul(grad.t(), x.t())
    return time.process_time() - before


@dataclass
class CpuLinear:
    """The choice of a run. `auto` is settled by the first model that it is applied to, and stays."""

    kind: str = "torch"
    earlier: tuple[str, str] | None = None
    """Kind that `auto` takes without measuring, since it was measured before, and the card that records it."""
    origin: str = "cpu_linear"
    """Origin of the kind: the key, a measurement (of this run, or the card of another), or nothing to measure."""

    def apply(self, model: nn.Module, tell: Callable[[str], None] = lambda line: None) -> None:
        """Gives the model's linear layers the chosen kernel, in place; only float32 on CPU has a choice."""
        if self.kind == "auto":
            line = self._settle(model)
            if self.kind == "onednn":
                tell(line)
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
        self.kind, message = choose_linear(model, "auto")
        return message


_run = CpuLinear()


def use_kernel(kind: str, earlier: tuple[str, str] | None = None) -> None:
    """Set the kernel of all models that this process loads from now on: `cpu_linear` of the run."""
    global _run
    _run = CpuLinear(kind, earlier)


def give_kernel(model: nn.Module, tell: Callable[[str], None] = lambda line: None) -> None:
    """Give the model's linear layers the run's kernel, in place."""
    _run.apply(model, tell)


def kernel_facts() -> dict[str, str]:
    """The run's kernel and its origin, for card.json."""
    return _run.facts()
