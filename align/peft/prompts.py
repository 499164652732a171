"""Methods that stand before a text: virtual tokens (prompt tuning, P-tuning), or keys and values (prefix, P-tuning v2).

PEFT drops the positions that it is given for such models, and padding on the left then changes the policy (0.21,
peft #1093). Here the virtual tokens come first, positions count real tokens alone, and rows start at the left.

Shapes: B rows, L tokens of the longest row, M virtual tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from align.errors import AlignError

ENCODER_FILE = "prompt_encoder.safetensors"
"""Weights that train, beside PEFT's file, which has the encoder's output: enough to compute, not to train on."""


def prompted(model: PreTrainedModel | PeftModel) -> bool:
    """Return True where the model's adapters stand before the text."""
    return isinstance(model, PeftModel) and model.peft_config["default"].is_prompt_learning


def opening(model: PreTrainedModel | PeftModel, name: str | None, rows: int) -> Tensor | Cache | None:
    """Before each row: embeddings, B x M x D, or a cache; None for other methods, and the base."""
    if name is None or not prompted(model):
        return None
    with _active(model, name):
        return model.get_prompt(rows)


def inputs_of(model: PreTrainedModel | PeftModel, name: str | None, ids_BL: Tensor) -> tuple[dict[str, Any], int]:
    """The arguments of a pass of the plain model over rows that start at the left, and how many columns go before."""
    before = opening(model, name, len(ids_BL))
    if before is None:
        return {"input_ids": ids_BL}, 0
    if isinstance(before, Cache):
        return {"input_ids": ids_BL, "past_key_values": before}, 0
    return {"inputs_embeds": embedded(model.get_base_model(), before, ids_BL)}, before.shape[1]


def embedded(model: PreTrainedModel, before_BMD: Tensor, ids_BL: Tensor) -> Tensor:
    """Embeddings of virtual tokens and, behind them, of rows of text: B x (M + L) x D."""
    text_BLD = model.get_input_embeddings()(ids_BL)
    return torch.cat([before_BMD.to(text_BLD.dtype), text_BLD], dim=1)


def length_of(before: Tensor | Cache | None) -> int:
    """M, of what `opening` returned."""
    if before is None:
        return 0
    return before.get_seq_length() if isinstance(before, Cache) else before.shape[1]


def copy_encoder(model: PeftModel, name: str) -> None:
    """Adapter `name` becomes what `default` is."""
    model.prompt_encoder[name].load_state_dict(model.prompt_encoder["default"].state_dict())


def save_encoder(model: PeftModel, directory: Path, name: str = "default") -> None:
    state = model.prompt_encoder[name].state_dict()
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, directory / ENCODER_FILE)


def load_encoder(model: PeftModel, path: str, name: str = "default") -> None:
    """Raises AlignError for a folder of PEFT alone, where the encoder is more than what it made."""
    file, encoder = Path(path) / ENCODER_FILE, model.prompt_encoder[name]
    if file.exists():
        encoder.load_state_dict(load_file(file))
        return
    made = load_peft_weights(path, device="cpu")["prompt_embeddings"]
    if list(encoder.state_dict()) != ["embedding.weight"]:
        raise AlignError(
            f"{path} has the virtual tokens, but not the encoder that made them ({ENCODER_FILE}): its training cannot "
            "go on\n  use the folder of a stage of align, or start from its base"
        )
    encoder.load_state_dict({"embedding.weight": made})


@contextmanager
def _active(model: PeftModel, name: str) -> Iterator[None]:
    before, model.active_adapter = model.active_adapter, name
    try:
        yield
    finally:
        model.active_adapter = before
