"""One model trained by plain torch: AdamW over what requires a gradient, clipping, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ADAM_EPSILON = 1e-5  # PyTorch's 1e-8 is more aggressive early: Huang et al. 2024, arXiv 2403.17031
ADAM_BETAS = (0.9, 0.95)


def adamw(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    """The optimizer of every role, here and under DeepSpeed."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=ADAM_BETAS, eps=ADAM_EPSILON, weight_decay=0.0)


class PlainEngine:
    """`backward` any number of times, then `step`; a frozen model (no learning rate) only computes."""

    def __init__(self, module: nn.Module, learning_rate: float | None = None, max_grad_norm: float = 0.0) -> None:
        self.module = module
        self.learning_rate = learning_rate
        self.max_grad_norm = max_grad_norm
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = adamw(self.parameters, learning_rate) if learning_rate is not None else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self) -> float:
        """Clips, steps, clears the gradients; returns the gradient's norm before clipping."""
        bound = self.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, bound)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every parameter is whole (always so here)."""
        yield
