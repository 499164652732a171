"""Scores of a rollout by a reward model. Shapes: B completions, K reward models at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from align.roles.batching import by_length
from align.types import Rollout

BATCH = {"cpu": 8, "cuda": 64}
"""Rows of a pass; more of them leave a CPU's cache (docs/log.md)."""


def score_rollout(
    module: Callable[[Tensor, Tensor], Tensor],
    rollout: Rollout,
    batch_size: int | None = None,
    columns: tuple[int, ...] = (),
) -> Tensor:
    """score_B of a rollout's own tokens, never of re-tokenised text; score_BK of a module that gives `columns` (K,)."""
    device = rollout.prompt_ids_BP.device
    batch_size = batch_size or BATCH.get(device.type, BATCH["cuda"])
    scores = torch.zeros(len(rollout), *columns, device=device)
    with torch.no_grad():
        for rows in by_length(rollout.length_B(), batch_size):
            part = rollout[rows].trim()
            scores[rows] = module(part.input_ids_BN(), part.mask_BN())
    return scores
