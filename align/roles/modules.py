"""The transformers model under a role's shell: its inputs, its trunk, its heads.

Shapes: B rows, N tokens, D hidden size.
"""

from __future__ import annotations

import inspect

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel


def position_ids(mask_BN: Tensor) -> Tensor:
    """Positions that count real tokens, so that padding on the left moves nothing."""
    return (mask_BN.long().cumsum(1) - 1).clamp(min=0)


def plain(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model inside, adapters and all, without PEFT's outer shell."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def inputs_of(model: PreTrainedModel, ids_BN: Tensor, mask_BN: Tensor) -> dict[str, Tensor]:
    """What `model` is called with for padded rows."""
    inputs = {"input_ids": ids_BN, "attention_mask": mask_BN.long()}
    if "position_ids" in inspect.signature(model.forward).parameters:  # ALiBi models have none
        inputs["position_ids"] = position_ids(mask_BN)
    return inputs


class ScoreModule(nn.Module):
    """A reward model of its own: score_B at the last real token, found by the mask and not by an id."""

    def __init__(self, model: PreTrainedModel | PeftModel, autocast: bool = False) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast

    def forward(self, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        with torch.autocast(ids_BN.device.type, torch.bfloat16, enabled=self.autocast):
            trunk = plain(self.model).base_model
            hidden_BND = trunk(**inputs_of(trunk, ids_BN, mask_BN), use_cache=False).last_hidden_state
            return read_score(score_head(self.model), hidden_BND, mask_BN)


def read_score(head: nn.Module, hidden_BND: Tensor, mask_BN: Tensor) -> Tensor:
    """score_B, float32: the head at each row's last real token."""
    last_B = mask_BN.long().cumsum(1).argmax(1)
    return head(hidden_BND[torch.arange(len(mask_BN), device=mask_BN.device), last_B]).squeeze(-1).float()


def score_head(model: PreTrainedModel | PeftModel) -> nn.Module:
    """The head of a sequence-classification model: `score` in decoder-only models, as transformers names it."""
    return plain(model).score
