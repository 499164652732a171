"""Weights copied into vLLM's own: all of a policy's after every update, or a quantised base's once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from align.errors import AlignError
from align.peft.prompts import embedded
from align.peft.quantized import plain_config, plain_tensors
from align.roles.modules import plain
from align.rollout.vllm.shared import plain_weights
from align.types import Policy


def copy_weights(policy: Policy, llm: Any) -> int:
    """Hands all weights, an adapter merged in, to vLLM's LLM; their size in bytes."""
    with torch.no_grad(), policy.generating() as model:
        return read(llm, plain(model), policy.tensors(merged=True))


def copy_base(ours: PreTrainedModel, llm: Any, dtype: torch.dtype) -> None:
    """Hands what the trainer's quantised weights stand for to vLLM's LLM."""
    with torch.device("meta"):  # what a checkpoint of plain weights would be
        whole = type(ours)._from_config(plain_config(ours.config), dtype=dtype)
    known = whole.state_dict()
    read(llm, whole, ((name, tensor) for name, tensor in plain_tensors(ours, dtype) if name in known))


def read(llm: Any, ours: PreTrainedModel, tensors: Iterable[tuple[str, Tensor]]) -> int:
    """Let vLLM read tensors, by their names in `ours`, as it reads a checkpoint's; their size in bytes.

    That turns, packs and orders them as its model has them: Conv1D of GPT-2, experts, queries, keys and values.
    """
    own = {name: tensor for name, tensor in tensors if name not in ours.all_tied_weights_keys}
    saved = revert_weight_conversion(ours, own)
    try:
        with plain_weights():
            llm.apply_model(_forget_experts)
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(saved.items())})
    except Exception as error:  # whatever the reader of an architecture raises
        why = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise AlignError(f"rollout=vllm: the policy's weights do not fit vLLM's: {why}\n  use rollout=hf") from error
    return sum(tensor.nbytes for tensor in saved.values())


def _forget_experts(model: nn.Module) -> None:
    """Let experts be laid out anew by the next reading, which vLLM (0.32) does on CPU at the first one alone."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    for module in model.modules():
        if on_cpu and getattr(getattr(module, "quant_method", None), "moe_kernel", None) is not None:
            module.quant_method.moe_kernel = None


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
