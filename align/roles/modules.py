"""What a training engine wraps: a backbone and its head as one module with one forward.

Shapes: B rows, P prompt, T response, N = P + T, V vocabulary, D hidden size.
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


def _inputs(model: PreTrainedModel, ids_BN: Tensor, mask_BN: Tensor) -> dict[str, Tensor]:
    inputs = {"input_ids": ids_BN, "attention_mask": mask_BN.long()}
    if "position_ids" in inspect.signature(model.forward).parameters:  # ALiBi models have none
        inputs["position_ids"] = position_ids(mask_BN)
    return inputs


class PolicyModule(nn.Module):
    """Logits of the response's tokens, and of those alone: the head is not run over the prompt."""

    def __init__(self, model: PreTrainedModel | PeftModel, autocast: bool = False) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast

    def forward(self, ids_BN: Tensor, mask_BN: Tensor, response_length: int) -> Tensor:
        model = plain(self.model)
        with torch.autocast(ids_BN.device.type, torch.bfloat16, enabled=self.autocast):
            inputs = _inputs(model, ids_BN, mask_BN)
            logits = model(**inputs, logits_to_keep=response_length + 1, use_cache=False).logits
        return logits[:, :-1]


class ValueModule(nn.Module):
    """The critic: value_BT, the return expected before each response token is written."""

    def __init__(self, model: PreTrainedModel | PeftModel, head: nn.Linear, autocast: bool = False) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.autocast = autocast

    def forward(self, ids_BN: Tensor, mask_BN: Tensor, response_length: int) -> Tensor:
        with torch.autocast(ids_BN.device.type, torch.bfloat16, enabled=self.autocast):
            hidden_BND = hidden_states(self.model, ids_BN, mask_BN)
        return self.head(hidden_BND[:, -response_length - 1 : -1].float()).squeeze(-1)


class ScoreModule(nn.Module):
    """The reward model: score_B at the last real token, found by the mask and not by an id."""

    def __init__(self, model: PreTrainedModel | PeftModel, autocast: bool = False) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast

    def forward(self, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        with torch.autocast(ids_BN.device.type, torch.bfloat16, enabled=self.autocast):
            hidden_BND = hidden_states(self.model, ids_BN, mask_BN)
            last_B = mask_BN.long().cumsum(1).argmax(1)
            hidden_BD = hidden_BND[torch.arange(len(ids_BN), device=ids_BN.device), last_B]
            return score_head(self.model)(hidden_BD).squeeze(-1).float()


def hidden_states(model: PreTrainedModel | PeftModel, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """hidden_BND of the last layer, from the trunk under whatever head."""
    trunk = plain(model).base_model
    return trunk(**_inputs(trunk, ids_BN, mask_BN), use_cache=False).last_hidden_state


def score_head(model: PreTrainedModel | PeftModel) -> nn.Module:
    """The head of a sequence-classification model: `score` in decoder-only models, as transformers names it."""
    return plain(model).score
