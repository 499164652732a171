"""The actor, as the PPO loop trains it and as a rollout engine sees it; and the reference policy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from align.peft.switch import use_adapter
from align.roles.modules import plain
from align.types import Rollout, TrainEngine


class TrainedPolicy:
    """The policy being trained: its logits with gradient, its weights for a rollout engine, its folder."""

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

    def logits_BTV(self, rollout: Rollout) -> Tensor:
        return _logits(self.engine, rollout)

    def step(self) -> float:
        self.version += 1
        return self.engine.step()

    @contextmanager
    def generating(self) -> Iterator[PreTrainedModel]:
        """Inside, the transformers model can generate: weights whole, no gradient."""
        with torch.no_grad(), self.engine.gathered():
            yield plain(self.model)

    def save_adapter(self, directory: Path) -> None:
        """The trained adapter alone, as PEFT's `default`, which lies at the folder's root."""
        with self.engine.gathered():
            self.model.save_pretrained(directory, selected_adapters=["default"])

    def tensors(self, merged: bool = False) -> Iterator[tuple[str, Tensor]]:
        """What is trained, by name: the adapter's tensors, or all weights in full fine-tuning."""
        if merged:
            raise ValueError("merged weights are not streamed yet: the adapter itself is handed over")
        with self.engine.gathered():
            state = get_peft_model_state_dict(self.model) if self.has_adapter else self.model.state_dict()
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


class AdapterReference:
    """The policy at step 0 on the actor's own backbone: adapter `name`, or None for the plain base."""

    def __init__(self, policy: TrainedPolicy, name: str | None) -> None:
        self.policy = policy
        self.name = name

    def logits_BTV(self, rollout: Rollout) -> Tensor:
        with use_adapter(self.policy.model, self.name):
            return self.policy.logits_BTV(rollout)


class FrozenReference:
    """The policy at step 0 as a model of its own."""

    def __init__(self, engine: TrainEngine, device: torch.device) -> None:
        self.engine = engine
        self.device = device

    def logits_BTV(self, rollout: Rollout) -> Tensor:
        return _logits(self.engine, rollout)


def _logits(engine: TrainEngine, rollout: Rollout) -> Tensor:
    return engine.forward(rollout.input_ids_BN(), rollout.mask_BN(), rollout.response_ids_BT.shape[1])
