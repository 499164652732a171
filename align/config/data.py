"""Options of where rows come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from align.config.open_node import open_node


@dataclass
class FileData:
    _target_: str = "align.data.files.FileData"
    format: str = MISSING
    """Meaning of a row: text, prompts, prompt_completion, conversational, preferences, dialogues, rankings,
    ratings or unpaired."""
    path: Any = "${data.path}"
    """A json, jsonl, csv (each also .gz) or parquet file, or the name of a data set on the hub; of SFT a list, too: one
    adapter each."""
    split: str = "train"
    """Split of a data set from the hub."""
    eval_path: str | None = None
    """Held-out rows; unset: a share of `path`."""
    eval_share: float = 0.05
    """Share of rows held out of training, chosen by the hash of the row's prompt."""
    columns: dict[str, str] = field(default_factory=open_node)
    """Columns by another name, or by a jinja template of a row's: sft.data.columns.prompt=question,
    'sft.data.columns.prompt="Topic of: {{ text }}"'."""
    rows: int | None = None
    """Only the first so many are read; a data set from the hub is then streamed."""
    report_by: str | None = None
    """A column by whose values the reward model's report splits its accuracy: rm.data.report_by=topic. In the parts
    of a mixture, in place of the task."""


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
    _target_: str = "align.data.files.Sampled"
    path: str = "auto"
    """A folder of the stage `preferences`; auto: this run's."""


@dataclass
class Mixture:
    _target_: str = "align.data.mixture.Mixture"
    parts: dict[str, Any] = field(default_factory=open_node)
    """Data by the name of the task: +data@sft.data.parts.topic=prompt_completion"""
    weights: dict[str, Any] = field(default_factory=open_node)
    """Weight of each task, 1 where none is given; without any, tasks are mixed by their size."""
    temperature: float | None = None
    """Shares go by size to the power 1 / temperature: 1 by size, the larger the more evenly."""
    rows: int | None = None
    """Training rows drawn in all; unset: as many as can be without drawing one twice."""


@dataclass
class ShortTexts:
    _target_: str = "align.data.short_texts.ShortTexts"
    task: str = "topic"
    """topic, mood, or both."""
    rows: int = 1000
    """Texts to train on."""
    documents: int = 4000
    """Texts of the pretraining corpus."""
    draw: int | None = None
    """Which texts; unset: those of the run's seed."""
