"""Tiny random models of five kinds, wild enough for any change to show, and adapters on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bottleneck_adapters import BottleneckConfig
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
)

COMMON = {"vocab_size": 97, "initializer_range": 0.15, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**COMMON, **LLAMA),
    "qwen2": lambda: Qwen2Config(**COMMON, **LLAMA),
    "gemma2": lambda: Gemma2Config(**COMMON, **LLAMA, head_dim=8),
    "gpt2": lambda: GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "bloom": lambda: BloomConfig(**COMMON, hidden_size=32, n_layer=2, n_head=4),
}
KINDS = list(CONFIGS)
PLACEMENTS = ["houlsby", "pfeiffer", "parallel"]


def settings(placement: str, **more) -> BottleneckConfig:
    return BottleneckConfig(**{"placement": placement, "bottleneck_size": 4, "task_type": "CAUSAL_LM", **more})


def logits(model: nn.Module, ids_BT: Tensor, **more) -> Tensor:
    with torch.no_grad():
        return model(ids_BT, **more).logits


def shake(model: nn.Module, seed: int, name: str = "default") -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "bottleneck_" in key and name in key.split("."):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
