"""One model trained by plain torch: AdamW over what its roles train, clipping, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from align.errors import AlignError

ALL = "all"
ADAM_EPSILON = 1e-5  # PyTorch's 1e-8 is more aggressive early: Huang et al. 2024, arXiv 2403.17031
ADAM_BETAS = (0.9, 0.95)


@runtime_checkable
class Stepped(Protocol):
    """A module that is told of an optimizer step while its gradients are there."""

    def on_step(self, roles: list[str]) -> None: ...


def adamw(module: nn.Module, rates: Mapping[str, float]) -> torch.optim.AdamW:
    """The optimizer of every role, here and under DeepSpeed: a group of parameters for each name in `rates`.

    `module.trained(role)` names a role's parameters; ALL stands for everything that requires a gradient.
    """
    groups = [
        {"params": [p for p in module.parameters() if p.requires_grad] if role == ALL else module.trained(role),
         "lr": rate, "role": role}
        for role, rate in rates.items()
    ]  # fmt: skip
    return torch.optim.AdamW(groups, betas=ADAM_BETAS, eps=ADAM_EPSILON, weight_decay=0.0, fused=True)


def by_role(learning_rate: float | Mapping[str, float] | None) -> dict[str, float]:
    """Learning rates by role; one rate is that of everything, none that of a frozen model."""
    if learning_rate is None:
        return {}
    return dict(learning_rate) if isinstance(learning_rate, Mapping) else {ALL: learning_rate}


class NotFinite(AlignError):
    """A gradient that is infinite or not a number."""

    def __init__(self, role: str, norm: float) -> None:
        super().__init__(f"the norm of the gradient of {role} is {norm}")


class PlainEngine:
    """`backward` any number of times, then `step`; a frozen model (no learning rate) only computes."""

    sharded = False

    def __init__(
        self, module: nn.Module, learning_rate: float | Mapping[str, float] | None = None, max_grad_norm: float = 0.0
    ) -> None:
        """`learning_rate` is one rate, or one for each role of `module`, whose gradients are clipped apart."""
        self.module = module
        self.max_grad_norm = max_grad_norm
        rates = by_role(learning_rate)
        self.optimizer = adamw(module, rates) if rates else None
        self.norms: dict[str, Tensor] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.norms = {}
        loss.backward()

    def step(self) -> dict[str, float]:
        """Clips, steps, clears the gradients; returns their norms before clipping, by role.

        A role without a gradient has no part in it. Raises NotFinite before any weight moves.
        """
        bound = self.max_grad_norm or float("inf")
        norms = self.norms or self.check()
        for group in self.optimizer.param_groups:
            if group["role"] in norms:
                torch.nn.utils.clip_grads_with_norm_(group["params"], bound, norms[group["role"]])
        self.optimizer.step()
        if isinstance(self.module, Stepped):
            self.module.on_step([role for role in norms if role != ALL])
        self.clear()
        return {role: float(norm) for role, norm in norms.items()}

    def check(self) -> dict[str, Tensor]:
        """The norms of the gradients that wait for a step, by role; raises NotFinite."""
        norms: dict[str, Tensor] = {}
        for group in self.optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                norm = norms[group["role"]] = torch.nn.utils.get_total_norm(gradients)
                if not norm.isfinite():
                    raise NotFinite(group["role"], float(norm))
        self.norms = norms
        return norms

    def clear(self) -> None:
        """Drops the gradients that wait for a step."""
        self.norms = {}
        self.optimizer.zero_grad(set_to_none=True)

    def rates(self) -> dict[str, float]:
        """The learning rate of each role."""
        return {group["role"]: group["lr"] for group in self.optimizer.param_groups} if self.optimizer else {}

    def set_rate(self, role: str, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if group["role"] == role:
                group["lr"] = rate

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every parameter is whole (always so here)."""
        yield
