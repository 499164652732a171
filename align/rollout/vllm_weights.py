"""Weights copied into vLLM's own: all of a policy's after every update, or a quantised base's once."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from align.peft.quantized import plain_config, plain_tensors
from align.rollout.shared import places_of
from align.types import Policy


def copy_weights(policy: Policy, theirs: nn.Module) -> int:
    """Copies all weights, an adapter merged in, into the model of vLLM's; their size in bytes.

    Raises Unshareable where the two models' tensors do not fit.
    """
    size = 0
    with torch.no_grad(), policy.generating() as model:
        places = places_of(model, theirs)
        for name, tensor in policy.tensors(merged=True):
            for place in places.get(name, ()):
                place.copy_(tensor)
                size += tensor.nbytes
    return size


def copy_base(ours: PreTrainedModel, theirs: nn.Module, dtype: torch.dtype) -> None:
    """Copies what the trainer's quantised weights stand for into the model of vLLM's."""
    with torch.device("meta"):
        places = places_of(type(ours)._from_config(plain_config(ours.config), dtype=dtype), theirs)
    for name, tensor in plain_tensors(ours, dtype):
        for place in places.get(name, ()):
            place.copy_(tensor)
