"""Options of where rows come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class FileData:
    _target_: str = "align.data.files.FileData"
    format: str = MISSING
    """Meaning of a row: text, prompts, prompt_completion, conversational, preferences, dialogues."""
    path: Any = "${data.path}"
    """A json or jsonl file (also .gz), or the name of a data set on the hub; of SFT a list, too: one adapter each."""
    split: str = "train"
    """Split of a data set from the hub."""
    eval_path: str | None = None
    """Held-out rows; unset: a share of `path`."""
    eval_share: float = 0.05
    """Share of rows held out of training, chosen by the hash of the row's prompt."""


@dataclass
class HelpDesk:
    _target_: str = "align.data.help_desk.HelpDesk"
    pairs: int = 4000
    """Preference pairs made for the reward model."""
    demonstrations: int = 1500
    """Answers made for fine-tuning, of mixed quality."""
    documents: int = 6000
    """Documents of the pretraining corpus."""
    noise: float = 0.1
    """Share of preference labels that are turned round."""
    minimal_pairs: float = 0.8
    """Share of pairs that differ in the fact alone."""


@dataclass
class Sampled:
    _target_: str = "align.data.sampled.Sampled"
    path: str = "auto"
    """A folder of the stage `preferences`; auto: this run's."""
