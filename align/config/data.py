"""Options of where rows come from."""

from __future__ import annotations

from align.config.fields import choice, number, open_settings, section, value
from align.config.values import Settings


@section("data")
class FileDataOptions:
    TARGET = "align.data.files.FileData"

    format: str = value()
    """Meaning of a row: text, prompts, prompt_completion, conversational, preferences, dialogues, rankings,
    ratings or unpaired."""
    path: str | tuple[str, ...] | None = value(None, follows="data.path")
    """A json, jsonl, csv (each also .gz) or parquet file, or the name of a data set on the hub; of SFT a list, too: one
    adapter each."""
    split: str = value("train", rare=True)
    """Split of a data set from the hub."""
    eval_path: str | None = None
    """Held-out rows; unset: a share of `path`."""
    eval_share: float = number(0.05, low=0, high=1)
    """Share of rows held out of training, chosen by the hash of the row's prompt."""
    eval_shared: str = choice("keep", "keep", "leave_out", rare=True)
    """Rows of `eval_path` whose prompt is trained on, too: they are counted, and stay or are left out."""
    columns: Settings = open_settings()
    """Columns by another name, or by a jinja template of a row's: sft.data.columns.prompt=question,
    'sft.data.columns.prompt="Topic of: {{ text }}"'."""
    rows: int | None = number(None, low=1, rare=True)
    """Only the first so many are read; a data set from the hub is then streamed."""
    report_by: str | None = value(None, rare=True)
    """A column by whose values the reward model's report splits its accuracy: rm.data.report_by=topic. In the parts
    of a mixture, in place of the task."""


@section("data")
class SampledOptions:
    TARGET = "align.data.files.Sampled"

    path: str = "auto"
    """A folder of the stage `preferences`; auto: this run's."""


@section("data")
class MixtureOptions:
    TARGET = "align.data.mixture.Mixture"

    parts: Settings = open_settings()
    """Data by the name of the task: +data@sft.data.parts.topic=prompt_completion"""
    weights: Settings = open_settings()
    """Weight of each task, 1 where none is given; without any, tasks are mixed by their size."""
    temperature: float | None = None
    """Shares go by size to the power 1 / temperature: 1 by size, the larger the more evenly."""
    rows: int | None = number(None, low=1, rare=True)
    """Training rows drawn in all; unset: as many as can be without drawing one twice."""
