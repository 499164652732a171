"""An adapter's folder: PEFT's own, with what PEFT leaves out."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from align.peft.prompts import prompted, save_encoder
from align.peft.stateful import whole_ranks


def save_model(model: PreTrainedModel | PeftModel, directory: Path) -> None:
    """A whole model, or its adapter alone."""
    if isinstance(model, PeftModel):
        save_adapter(model, directory)
    else:
        model.save_pretrained(directory)


def save_adapter(model: PeftModel, directory: Path, name: str = "default") -> None:
    """The adapter at the folder's root, as PEFT loads it; beside it the encoder of virtual tokens.

    One with another name than `default` must have the folder's: that is where PEFT puts it.
    """
    config = model.peft_config[name]
    if score := bare_score(model):
        _save_scored_base(config.base_model_name_or_path, score, directory / "base")
        config.base_model_name_or_path = str((directory / "base").resolve())
    with whole_ranks(config):
        model.save_pretrained(directory if name == "default" else directory.parent, selected_adapters=[name])
    if prompted(model):
        save_encoder(model, directory)


def bare_score(model: PeftModel) -> nn.Module | None:
    """The score head that the adapter's method has no place for, and that would neither train nor be saved.

    So it is with what has no `modules_to_save`: TrainableTokens, AdaptionPrompt (PEFT 0.21).
    """
    score = getattr(model.get_base_model(), "score", None)
    return score if isinstance(score, nn.Linear) else None


def _save_scored_base(path: str, score: nn.Module, directory: Path) -> None:
    """Saves the base at `path` with a trained score head: the adapter's file cannot hold it."""
    base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    base.score.load_state_dict(score.state_dict())
    base.save_pretrained(directory)
