"""From rows of a data set to a Rollout, and from a Rollout to texts.

Shapes: B completions, P prompt, T response.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from align.data.encode import completion_as, prompt_ids
from align.errors import AlignError
from align.rollout.hf import pad_left
from align.rollout.keys import sample_key
from align.types import Rollout, RolloutEngine, Sampling, Texts


@dataclass
class Row:
    """A prompt ready for rollouts: its number in the data set, its tokens, and the row's other columns."""

    number: int
    prompt: Any
    ids: list[int]
    columns: dict[str, Any] = field(default_factory=dict)


def as_rows(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Rows of a data set with a `prompt` column (text or messages), tokenised.

    Raises AlignError for a prompt without tokens: nothing foresees the first token of its response.
    """
    return [row_of(number, row, prompt_ids(row["prompt"], tokenizer)) for number, row in enumerate(rows)]


def row_of(number: int, row: dict, ids: list[int]) -> Row:
    if not ids:
        raise AlignError(f"prompt {number} ({row['prompt']!r}) has no tokens: leave the row out")
    return Row(number, row["prompt"], ids, {name: value for name, value in row.items() if name != "prompt"})


def spread(rows: list[Row], count: int) -> list[Row]:
    """`count` rows from all over, since neighbours are often alike; all if there are fewer."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def batches(rows: list[Row], size: int, seed: int) -> Iterator[list[Row]]:
    """Batches of `size` rows for ever, each pass over the data in a fresh order; a batch may go round."""
    queue: list[Row] = []
    turn = 0
    while True:
        while len(queue) < size:
            order = list(rows)
            random.Random(f"{seed}/order/{turn}").shuffle(order)
            queue += order
            turn += 1
        batch, queue = queue[:size], queue[size:]
        yield batch


def further(rows: list[Row], batch: list[Row], size: int, seed: int, step: int) -> Iterator[list[Row]]:
    """All rows that are not in `batch`, in batches of `size`; their order is the step's own."""
    there = {row.number for row in batch}
    others = [row for row in rows if row.number not in there]
    random.Random(f"{seed}/further/{step}").shuffle(others)
    for first in range(0, len(others), size):
        yield others[first : first + size]


def write(
    engine: RolloutEngine,
    rows: list[Row],
    sampling: Sampling,
    *,
    seed: int,
    purpose: str,
    step: int = 0,
    samples: int = 1,
) -> Rollout:
    """`samples` completions of each row; `purpose` parts the randomness of evaluation from training's.

    A row that stands in `rows` twice gets other samples the second time.
    """
    seen: dict[int, int] = {}
    entries = []
    for row in rows:
        for _ in range(samples):
            sample = seen.get(row.number, 0)
            seen[row.number] = sample + 1
            entries.append((row, sample))
    keys = [sample_key(seed, purpose, step, row.number, sample) for row, sample in entries]
    generation = engine.generate([row.ids for row, _ in entries], keys, sampling)
    prompt_ids_BP, prompt_mask_BP = pad_left([row.ids for row, _ in entries], sampling.stop_ids[0])
    names = sorted({name for row, _ in entries for name in row.columns})
    columns = {name: [row.columns.get(name) for row, _ in entries] for name in names}
    return Rollout(
        prompt_ids_BP=prompt_ids_BP,
        prompt_mask_BP=prompt_mask_BP,
        response_ids_BT=generation.response_ids_BT,
        response_mask_BT=generation.mask_BT,
        loss_mask_BT=generation.mask_BT,
        logp_BT=generation.logp_BT,
        row_B=torch.tensor([row.number for row, _ in entries]),
        sample_B=torch.tensor([sample for _, sample in entries]),
        finished_B=generation.finished_B,
        version_B=generation.version_B,
        temperature=sampling.temperature,
        columns={**columns, "prompt": [row.prompt for row, _ in entries]},
    )


def texts_of(rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Prompts as the data set has them, completions in the same form, special tokens left out."""
    ids = [row[mask].tolist() for row, mask in zip(rollout.response_ids_BT, rollout.response_mask_BT, strict=True)]
    words = tokenizer.batch_decode(ids, skip_special_tokens=True)
    prompts = rollout.columns["prompt"]
    completions = [completion_as(prompt, text) for prompt, text in zip(prompts, words, strict=True)]
    return Texts(prompts, completions, ids)
