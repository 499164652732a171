"""What an evaluation leaves: its tables on the terminal, and the completions in a file."""

from __future__ import annotations

import json
from pathlib import Path

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column, Table

from align.types import Texts

COMPLETIONS = "completions.jsonl"
UNJUDGED = ("score", "reward", "kl", "length", "finished")
"""Figures of completions, in the order of their columns, behind the judge's and before all others."""
TITLES = {"true_score": "true score", "kl": "KL", "length": "tokens", "finished": "ended"}
WIDEST = 80
"""Characters of a table with a column a figure; a wider one has a row a figure."""


def results_table(results: dict[str, dict[str, float]], title: str | None = None) -> Table:
    """A row a policy, a column a figure: the judge's first, then reward, KL, tokens and share that ended.

    The other way round where the columns would be too many for a terminal.
    """
    names = dict.fromkeys(name for figures in results.values() for name in figures)
    judged = [name for name in names if name.startswith("true_")]
    others = [name for name in names if name not in judged and name not in UNJUDGED]
    figures = [*judged, *(name for name in UNJUDGED if name in names), *others]
    titles = [TITLES.get(name, name.removeprefix("true_").replace("_", " ")) for name in figures]
    cells = [[f"{told[name]:.2f}" if name in told else "" for name in figures] for told in results.values()]
    heads, lines, corner = titles, dict(zip(results, cells, strict=True)), "policy"
    if max(map(len, results), default=0) + sum(len(title) + 1 for title in titles) > WIDEST:
        heads, corner = list(results), ""
        lines = {name: list(column) for name, column in zip(titles, zip(*cells, strict=True), strict=True)}
    table = Table(corner, *[Column(head, justify="right") for head in heads], box=SIMPLE, padding=0, title=title)
    for name, row in lines.items():
        table.add_row(name, *row)
    return table


def answers_table(texts: dict[str, Texts], show: int) -> Table:
    """Prompts from all over the held-out ones, with what each policy answered."""
    first = next(iter(texts.values()))
    table = Table("prompt", *texts, show_lines=True)
    distinct = sorted({str(prompt): i for i, prompt in reversed(list(enumerate(first.prompts)))}.values())
    for i in distinct[:: max(len(distinct) // show, 1)][:show]:
        answers = [str(text.completions[i]).strip() for text in texts.values()]
        table.add_row(escape(str(first.prompts[i])), *map(escape, answers))
    return table


def write_completions(file: Path, policy: str, texts: Texts, finished: list[bool]) -> None:
    """Adds a policy's completions to a file, a line each: policy, prompt, completion, finished (ended by itself)."""
    with file.open("a", encoding="utf-8") as stream:
        for prompt, completion, ended in zip(texts.prompts, texts.completions, finished, strict=True):
            line = {"policy": policy, "prompt": prompt, "completion": completion, "finished": ended}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
