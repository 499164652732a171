"""One copy of the weights for the trainer and vLLM: vLLM's parameters become views of the trainer's tensors.

The trainer owns them. What vLLM keeps in one matrix (q, k and v; gate and up) is laid side by side on the
trainer's side once, each part a slice of one storage. An update in place is then what vLLM computes with.
Several calls break such views in silence (a cast, a resized embedding, some merges): `holds` checks.

vLLM on CPU would pack its weights into a copy of oneDNN's own layout: `plain_weights` keeps it from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.linear import fast_matmul
from align.peft.merging import plain_name


class Unshareable(Exception):
    """The two models' tensors cannot be one; says why."""


@dataclass
class Pair:
    """A parameter of vLLM's and the trainer's parameters that stand in it, in order of rows."""

    name: str
    theirs: nn.Parameter
    parts: list[nn.Parameter]

    def adjacent(self) -> bool:
        """The parts lie side by side in one storage."""
        tensors = [part.data for part in self.parts]
        neighbours = pairwise(tensors)
        one = len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
        return one and all(a.data_ptr() + a.nbytes == b.data_ptr() for a, b in neighbours)

    def lay_out(self, laid: set[int]) -> None:
        """Gives parts with their own storages, or with one of those `laid` before, a common one, added to them."""
        storages = [part.untyped_storage() for part in self.parts]
        if self.adjacent() and (storages[0].data_ptr() in laid or storages[0].nbytes() > self.parts[0].nbytes):
            return
        if any(s.nbytes() > p.nbytes and s.data_ptr() not in laid for s, p in zip(storages, self.parts, strict=True)):
            raise Unshareable(f"the trainer keeps the parts of {self.name} apart in another buffer")
        rows = [len(part) for part in self.parts]
        with torch.no_grad():
            whole = torch.cat([part.data for part in self.parts])
        for part, piece in zip(self.parts, whole.split(rows), strict=True):
            part.data = piece
        laid.add(whole.untyped_storage().data_ptr())

    def adopt(self) -> None:
        first = self.parts[0].data
        shape = (sum(len(part) for part in self.parts), *first.shape[1:])
        self.theirs.data = torch.as_strided(first, shape, first.stride(), first.storage_offset())

    def holds(self) -> bool:
        return self.adjacent() and self.theirs.data_ptr() == self.parts[0].data_ptr()


class SharedWeights:
    """The pairs of one trainer's model and one vLLM model."""

    def __init__(self, ours: nn.Module, theirs: nn.Module) -> None:
        """Makes every tensor of `theirs` a view of the trainer's, or raises Unshareable and leaves it alone."""
        self.laid: set[int] = set()
        self.join(ours, theirs)

    def join(self, ours: nn.Module, theirs: nn.Module) -> None:
        """As at the start, for a trainer's model of which some tensors have been replaced since."""
        self.pairs = pairs_of(ours, theirs)
        for pair in self.pairs:
            pair.lay_out(self.laid)
        for pair in self.pairs:
            pair.adopt()

    def holds(self) -> bool:
        """Every tensor is still one and the same."""
        return all(pair.holds() for pair in self.pairs)


def why_own_copies(model: nn.Module, on_cpu: bool) -> str:
    """Reason why vLLM cannot share the trainer's weights, as far as the trainer's model tells; '' where it can."""
    if not on_cpu:
        return "sharing has been seen on CPU alone"
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        return "ZeRO stage 3 divides them"
    if kinds := {p.dtype for n, p in model.named_parameters() if "lora_" not in n} - {torch.float32, torch.bfloat16}:
        return f"weights of {', '.join(map(str, kinds))} are quantised"
    return ""


def pairs_of(ours: nn.Module, theirs: nn.Module) -> list[Pair]:
    """Each parameter of vLLM's model with those of the trainer's that stand in it."""
    mine = {known: p for n, p in ours.named_parameters(remove_duplicate=False) if (known := plain_name(n))}
    packed: dict[str, list[str]] = getattr(theirs, "packed_modules_mapping", None) or {}
    modules = dict(theirs.named_modules())
    found = []
    for name, parameter in theirs.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        if hasattr(parameter, "lora_a") or "lora_" in leaf:
            continue
        up, _, last = path.replace(".base_layer", "").rpartition(".")
        names = [f"{up}.{piece}.{leaf}".lstrip(".") for piece in packed.get(last, [last])]
        if missing := [n for n in names if n not in mine]:
            raise Unshareable(f"the trainer's model has no {missing[0]}")
        parts = [mine[n] for n in names]
        check(name, parameter, parts, getattr(modules[path], "org_vocab_size", None))
        found.append(Pair(name, parameter, parts))
    return found


def check(name: str, parameter: Tensor, parts: list[nn.Parameter], vocabulary: int | None) -> None:
    """Raises Unshareable where the parts, one under the other, are not `parameter` (padded to a round vocabulary)."""
    rows = sum(len(part) for part in parts)
    if {part.dtype for part in parts} != {parameter.dtype}:
        raise Unshareable(f"{name} is {parameter.dtype} there and {parts[0].dtype} here")
    if rows not in (len(parameter), vocabulary) or {part.shape[1:] for part in parts} != {parameter.shape[1:]}:
        raise Unshareable(f"{name} has another shape: {tuple(parameter.shape)} there, {rows} rows here")
    if not all(part.is_contiguous() for part in parts):
        raise Unshareable(f"{name} is laid out another way here")


@contextmanager
def plain_weights() -> Iterator[None]:
    """A vLLM (0.32) that starts inside computes on CPU with its weights as they are."""
    from vllm.model_executor.layers import utils

    def dispatch(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = _linear

    before, utils.dispatch_cpu_unquantized_gemm = utils.dispatch_cpu_unquantized_gemm, dispatch
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = before


def unwritten() -> str:
    """Name of a load format of vLLM's that writes no weights: memory nobody has written to takes no room."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class Unwritten(BaseModelLoader):
        def download_model(self, model_config: Any) -> None:
            pass

        def load_weights(self, model: nn.Module, model_config: Any) -> None:
            pass

    register_model_loader("unwritten")(Unwritten)
    return "unwritten"


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's kernel on plain weights: 0.85 of the packed kernel's speed, torch's own half of it (AMD Zen 5)."""
    y = fast_matmul(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias
