"""An adapter's folder: PEFT's own, with what PEFT leaves out."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from align.peft.adalora import whole_ranks
from align.peft.prompts import prompted, save_encoder


def save_model(model: PreTrainedModel | PeftModel, directory: Path) -> None:
    """A whole model, or its adapter alone."""
    if isinstance(model, PeftModel):
        save_adapter(model, directory)
    else:
        model.save_pretrained(directory)


def save_adapter(model: PeftModel, directory: Path) -> None:
    """The `default` adapter at the folder's root, as PEFT loads it; beside it the encoder of virtual tokens."""
    with whole_ranks(model.peft_config["default"]):
        model.save_pretrained(directory, selected_adapters=["default"])
    if prompted(model):
        save_encoder(model, directory)
