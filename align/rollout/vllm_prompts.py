"""Prompts behind virtual tokens, for vLLM: as embeddings, since virtual tokens have no ids.

vLLM's cache of prefixes knows embeddings by their bytes (0.32); a new version empties it all the same.

Shapes: M virtual tokens, L tokens of a prompt, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from align.peft.prompts import embedded
from align.types import Policy


class Prompts:
    """What stands before every prompt, as of the last `take`; nothing before the first."""

    def __init__(self) -> None:
        self.virtual_MD: Tensor | None = None

    def take(self, policy: Policy) -> int:
        """Keeps the embeddings that the policy's encoder makes now; their size in bytes."""
        with policy.generating():
            self.virtual_MD = policy.opening(1)[0].detach().clone()
        return self.virtual_MD.nbytes

    def inputs(self, policy: Policy, prompts: list[list[int]]) -> list[dict[str, Any]]:
        """A prompt of vLLM's for each: its ids, or embeddings, (M + L) x D, once there are virtual tokens."""
        if self.virtual_MD is None:
            return [{"prompt_token_ids": ids} for ids in prompts]
        with policy.generating() as model:
            rows = [torch.tensor([ids], device=model.device) for ids in prompts]
            return [{"prompt_embeds": embedded(model, self.virtual_MD[None], ids_1L)[0].cpu()} for ids_1L in rows]
