"""The policy as a rollout engine sees it: its weights, their hash, its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from align.peft.adapters import use_adapter
from align.peft.checkpointing import no_recomputing
from align.peft.folder import save_adapter
from align.peft.merging import merged_tensors, save_as_lora
from align.peft.prompts import opening
from align.peft.stateful import whole_ranks
from align.roles.backbone import ACTOR
from align.roles.group import Group
from align.roles.modules import plain
from align.types import Rollout, TrainEngine


class TrainedPolicy:
    """The actor's model under its engine, which wraps the backbone it sits on."""

    def __init__(self, model: PreTrainedModel | PeftModel, engine: TrainEngine, device: torch.device) -> None:
        self.model = model
        self.engine = engine
        self.device = device
        self.version = 0

    @property
    def backbone(self) -> PreTrainedModel | PeftModel:
        return self.model

    @property
    def has_adapter(self) -> bool:
        return isinstance(self.model, PeftModel)

    @property
    def full_precision(self) -> bool:
        """Everything is computed in float32."""
        return self.model.dtype == torch.float32 and not self.engine.module.autocast

    def logp_BT(self, rollout: Rollout) -> Tensor:
        """Log-probabilities of the responses at their temperature, with gradient; 0 outside their mask."""
        return Group(self.engine.module, self.engine).scores(rollout, (ACTOR,))["logp_BT"]

    @contextmanager
    def generating(self) -> Iterator[PreTrainedModel]:
        """Inside, the transformers model can generate: weights whole, no gradient, the actor's adapter at work."""
        adapter = use_adapter(self.model, "default") if self.has_adapter else nullcontext()
        with torch.no_grad(), self.engine.gathered(), no_recomputing(self.model), adapter:
            yield plain(self.model)

    def opening(self, rows: int) -> Tensor | Cache | None:
        """Embeddings or cache that the actor's adapter puts before rows (align.peft.prompts), inside `generating`."""
        return opening(self.model, "default", rows)

    def save_adapter(self, directory: Path) -> None:
        """The trained adapter alone, as PEFT's `default`, which lies at the folder's root."""
        with self.engine.gathered():
            save_adapter(self.model, directory)

    def save_as_lora(self, directory: Path) -> None:
        """The trained adapter as the LoRA that it equals (align.peft.merging)."""
        with self.engine.gathered():
            save_as_lora(self.model, directory)

    def tensors(self, merged: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Tensors that are trained, by name: the adapter's, or all weights in full fine-tuning.

        `merged`: every weight of the plain model, the adapter merged in; a tensor is gone with the next one.
        """
        with self.engine.gathered():
            if merged and self.has_adapter:
                with use_adapter(self.model, "default"):
                    yield from merged_tensors(self.model)
                return
            if not self.has_adapter:
                yield from self.model.state_dict().items()
                return
            with whole_ranks(self.model.peft_config["default"]):
                state = get_peft_model_state_dict(self.model)
            yield from state.items()

    def hash(self) -> str:
        """SHA-256 over names and bytes of what is trained, the first 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, directory: Path) -> None:
        """A folder that transformers or PEFT load without align."""
        if self.has_adapter:
            self.save_adapter(directory)
        else:
            with self.engine.gathered():
                self.model.save_pretrained(directory)
