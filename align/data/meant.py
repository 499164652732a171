"""A row as a stage wants it, with what tells whether two rows are about the same prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass

from align.data.columns import Columns

UNFORWARDED = ("prompt", "completion", "completion_ids")
"""Columns that TRL's trainers do not hand to reward functions as columns (trl 1.16, trainer/grpo_trainer.py)."""

REWARD_KEYWORDS = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")
"""Keywords of a TRL reward function that a column of the same name would collide with."""


@dataclass
class Meant:
    """A row as a stage wants it, and the text that tells whether two rows are about the same prompt."""

    row: dict
    identity: str


def for_ppo(columns: Columns, prompt: str | list) -> Meant:
    """The prompt with all other columns of the row, as they are: reward functions are handed them."""
    taken = [name for name in columns.row if name in REWARD_KEYWORDS]
    if taken:
        raise columns.error(
            f"has the column {taken[0]!r}, which is a keyword of every reward function", "another name for it"
        )
    others = {name: value for name, value in columns.row.items() if name not in UNFORWARDED}
    return Meant({"prompt": prompt, **others}, identity(prompt))


def identity(prompt: str | list[dict]) -> str:
    if isinstance(prompt, str):
        return prompt
    return json.dumps([[message["role"], message["content"]] for message in prompt], ensure_ascii=False)


def prompt_alone(columns: Columns) -> Meant:
    return for_ppo(columns, columns.text_or_messages("prompt"))
