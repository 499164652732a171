"""Weights copied into vLLM's own: all of a policy's after every update, or a quantised base's once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.errors import AlignError
from align.peft.prompts import embedded
from align.peft.quantized import plain_config, plain_tensors
from align.rollout.vllm.shared import places_of
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


class Adapters:
    """Those of one engine, vLLM's LLM."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.pushes = 0
        self.request: Any = None
        """Request by which a call of `generate` names the current adapter; None before the first."""
        self.folder = tempfile.TemporaryDirectory(prefix="align-vllm-")

    def push(self, save: Callable[[Path], None]) -> int:
        """Hands over the adapter that `save` writes into a folder as a new one, and drops the old; its size in bytes.

        Raises AlignError for one that vLLM refuses; the old one stays.
        """
        from vllm.lora.request import LoRARequest

        self.pushes += 1
        name = f"policy-{self.pushes}"
        folder = Path(self.folder.name) / name
        folder.mkdir()
        save(folder)
        request = LoRARequest(name, self.pushes, str(folder))
        try:
            self.llm.llm_engine.add_lora(request)
        except ValueError as error:
            shutil.rmtree(folder)
            raise AlignError(f"rollout=vllm: vLLM refuses the actor's adapter: {error}\n  use rollout=hf") from error
        if self.request is not None:
            self.llm.llm_engine.remove_lora(self.request.lora_int_id)
            shutil.rmtree(self.request.lora_path)
        self.request = request
        return sum(file.stat().st_size for file in folder.glob("adapter_model*"))

    def close(self) -> None:
        """Deletes the folders; may be called twice."""
        self.request = self.llm = None
        self.folder.cleanup()


class Prompts:
    """Embeddings that stand before every prompt, as of the last `take`; none before the first."""

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
