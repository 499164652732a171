"""One model trained by plain torch: AdamW over what its roles train, clipping, nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from align.config.choices import SCHEDULES
from align.errors import AlignError

ALL = "all"
ADAM_EPSILON = 1e-5  # PyTorch's 1e-8 is more aggressive early: Huang et al. 2024, arXiv 2403.17031
ADAM_BETAS = (0.9, 0.95)


@runtime_checkable
class Stepped(Protocol):
    """A module with a hook after each optimizer step, while its gradients are there."""

    def reads_gradients(self) -> bool: ...
    def on_step(self, roles: list[str]) -> None: ...


def adamw(module: nn.Module, rates: Mapping[str, float]) -> torch.optim.AdamW:
    """The optimizer of every role, here and under DeepSpeed: a group of parameters for each name in `rates`.

    `module.trained(role)` names a role's parameters; ALL stands for everything that requires a gradient.
    """
    groups = [group for role, rate in rates.items() for group in _groups(module, role, rate)]
    return torch.optim.AdamW(groups, betas=ADAM_BETAS, eps=ADAM_EPSILON, weight_decay=0.0, fused=True)


def _groups(module: nn.Module, role: str, rate: float) -> list[dict[str, Any]]:
    """Parameter groups of a role; LoRA's B apart, where the module says that it learns faster (`loraplus`, by role)."""
    trained = [p for p in module.parameters() if p.requires_grad] if role == ALL else module.trained(role)
    times = getattr(module, "loraplus", {}).get(role, 1.0)
    faster = {id(p) for name, p in module.named_parameters() if times != 1 and ".lora_B." in name}
    slow, fast = [p for p in trained if id(p) not in faster], [p for p in trained if id(p) in faster]
    return [
        {"params": part, "lr": rate * factor, "rate": rate, "times": factor, "role": role}
        for part, factor in ((slow, 1.0), (fast, times)) if part
    ]  # fmt: skip


def rates_of(groups: list[dict[str, Any]]) -> dict[str, float]:
    """The learning rate of each role."""
    return {group["role"]: group["rate"] for group in groups}


def set_rate(groups: list[dict[str, Any]], role: str, rate: float) -> None:
    for group in groups:
        if group["role"] == role:
            group["rate"], group["lr"] = rate, rate * group["times"]


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
        gradients: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            gradients.setdefault(group["role"], []).extend(p.grad for p in group["params"] if p.grad is not None)
        for role, found in gradients.items():
            if found:
                norm = norms[role] = torch.nn.utils.get_total_norm(found)
                if not norm.isfinite():
                    raise NotFinite(role, float(norm))
        self.norms = norms
        return norms

    def clear(self) -> None:
        """Drops the gradients that wait for a step."""
        self.norms = {}
        self.optimizer.zero_grad(set_to_none=True)

    def rates(self) -> dict[str, float]:
        """The learning rate of each role."""
        return rates_of(self.optimizer.param_groups) if self.optimizer else {}

    def set_rate(self, role: str, rate: float) -> None:
        set_rate(self.optimizer.param_groups, role, rate)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every parameter is whole (always so here)."""
        yield


@dataclass(frozen=True)
class Schedule:
    """A peak rate, reached in `warmup_steps` steps from 0, then constant or falling to 0 at the last step's end."""

    peak: float
    shape: str = "constant"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.shape not in SCHEDULES:
            raise AlignError(f"schedule={self.shape}: use one of {', '.join(SCHEDULES)}")

    def rate(self, step: int, steps: int) -> float:
        """The rate of step `step` (from 0) out of `steps`.

        As transformers' schedules of these names, but that the first step of a warm-up has a rate above 0: its
        rollouts are paid for.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        if self.shape == "linear":
            return self.peak * (1 - done)
        if self.shape == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * done))
        return self.peak
