"""Checks of rows against the model that a run starts from, apart from the pipeline, which imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import AutoConfig

from align.data.encode import check_dialogues
from align.data.files import unwritten
from align.data.source import LIKE, PURPOSES
from align.errors import AlignError
from align.plan.plan import Origin, StagePlan
from align.roles.folder import base_home
from align.roles.tokenizer import load_tokenizer


def check_later(steps: list[tuple[StagePlan, Any]]) -> None:
    """Raise AlignError for rows longer than the model's positions, and for messages that the chat template refuses.

    The template is that of the model that the run starts from, which stages hand on; of a model that is still to be
    made there is none to check.
    """
    for stage, step in steps:
        start = stage.input("actor") or stage.input("path")
        if start is not None and start.origin.path is not None:
            check_positions(stage, start.origin, getattr(step, "peft", None))
        if start is None or start.path is not None or start.origin.path is None or stage.spec.name not in PURPOSES:
            continue
        tokenizer, data = load_tokenizer(start.origin.path, "model"), step.data
        for source in data if isinstance(data, list) else [data]:
            if not unwritten(source):
                split = source.load(stage.spec.name, step.seed)
                rows = [*split.train, *split.eval, *split.test]
                if LIKE.get(stage.spec.name, stage.spec.name) == "ppo":  # other columns are a reward's
                    rows = [{"prompt": row["prompt"]} for row in rows]
                check_dialogues(rows, tokenizer, f"{stage.spec.name}.data")


def check_positions(stage: StagePlan, origin: Origin, method: PeftConfig | None) -> None:
    """Raise AlignError where rows as long as the stage takes have no position in the model; rotary ones never end."""
    length, home = getattr(stage.options, "max_length", None), base_home(origin.path)
    if length is None or not Path(home).is_dir():
        return
    config = AutoConfig.from_pretrained(home).get_text_config()
    positions, virtual = getattr(config, "max_position_embeddings", None), getattr(method, "num_virtual_tokens", 0)
    if positions and not getattr(config, "rope_parameters", None) and length + virtual > positions:
        key, beside = f"{stage.spec.name}.max_length", f", {virtual} of them for virtual tokens" if virtual else ""
        raise AlignError(
            f"{key}={length}: the model of {origin.path} ({origin.key}) has {positions} positions{beside}\n"
            f"  use {key}={positions - virtual}"
        )
