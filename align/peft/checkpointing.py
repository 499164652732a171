"""Gradient checkpointing of models in evaluation mode, where dropout is off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from align.errors import AlignError


def recompute_layers(model: PreTrainedModel) -> None:
    """Each layer keeps its input alone and is computed again in the backward pass.

    transformers 5 does so in training mode only: the layers' own flags are set, and none of what lies in them.
    Raises AlignError for a model whose layers cannot.
    """
    if not any(isinstance(m, GradientCheckpointingLayer) for m in model.modules()):
        raise AlignError(
            f"ppo.gradient_checkpointing=true: transformers cannot compute the layers of a {model.config.model_type} "
            "model again\n  use ppo.gradient_checkpointing=false, and a lower ppo.micro_batch_tokens"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in _layers(model):
        layer.training = True


@contextmanager
def no_recomputing(model: nn.Module) -> Iterator[None]:
    """Inside, layers keep a key-value cache, which checkpointing forbids."""
    layers = [layer for layer in _layers(model) if layer.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


def _layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
