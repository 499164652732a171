"""What came out of a run, as numbers by name: `sft.eval_loss`, `ppo.true_score`, `ppo.kl`, `seconds` …"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from align.stages.pipeline import STAGES

APART = ("versions", "inputs", "hashes", "cpu_linear")
COUNTS = {
    "learning_rate", "rows", "left_out", "too_long", "alike", "empty", "cut", "unscored", "pairs", "eval_pairs",
    "prompts", "samples", "parameters", "tokens", "step", "kl_coef", "length", "finished", "rankings", "swaps",
}  # fmt: skip
"""Facts of a card that echo a setting or count something."""
PARTS = ("last", "adapters", "members", "tasks", "score", "base", "bins", "levels", "thresholds")
"""Nodes of a card, lists of a report among them, and a policy (with shots or without), that a first look does not
need."""


def read_json(file: Path) -> dict[str, Any]:
    """What the file holds; {} where there is none, or half of one by a run that was stopped."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}


def figures(folder: Path, stages: list[str]) -> dict[str, float]:
    """Every number that the cards of finished stages hold, and the seconds that each took.

    What evaluation says of a policy stands under the policy's name: `ppo.kl`, `sft.true_score`.
    """
    found: dict[str, float] = {}
    policies: dict[str, Any] = {}
    for stage in stages:
        card = read_json(folder / stage / "card.json")
        if "hashes" in card:  # written last
            policies |= card.pop("policies", {}) if stage == "evaluate" else {}
            found |= numbers({stage: {name: value for name, value in card.items() if name not in APART}})
    found |= {name: value for name, value in numbers(policies).items() if name not in found}
    took = read_json(folder / "summary.json").get("seconds", {})
    seconds = {stage: took[stage] for stage in stages if stage in took}
    found |= {f"{stage}.seconds": value for stage, value in seconds.items()}
    return {**found, "seconds": round(sum(seconds.values()), 1)} if seconds else found


def numbers(node: Any, prefix: str = "") -> dict[str, float]:
    """The numbers in nested facts by dotted name; an entry of a list goes by its own `name`, else by its place.

    >>> numbers({"sft": {"eval_loss": 2.5, "start": "new", "adapters": [{"name": "a", "eval_loss": 3}]}})
    {'sft.eval_loss': 2.5, 'sft.adapters.a.eval_loss': 3}
    """
    if isinstance(node, bool):
        return {}
    if isinstance(node, int | float):
        return {prefix.removesuffix("."): node}
    if isinstance(node, list):
        node = {str(one.get("name", i) if isinstance(one, dict) else i): one for i, one in enumerate(node)}
    if not isinstance(node, dict):
        return {}
    return {name: number for key, value in node.items() for name, number in numbers(value, f"{prefix}{key}.").items()}


def in_order(names: list[str]) -> list[str]:
    """Figures in the order of the stages; the run's own, such as `seconds`, at the end."""
    owners = ("base", *STAGES)
    place = {owner: i for i, owner in enumerate(owners)}
    return sorted(names, key=lambda name: (name.count(".") == 0, place.get(name.partition(".")[0], len(owners))))


def nearest_figures(word: str, names: list[str]) -> list[str]:
    """Names that may have been meant: with the same last part, much alike, or with a last part much alike."""
    last = word.rpartition(".")[2]
    lasts = difflib.get_close_matches(last, {name.rpartition(".")[2] for name in names}, n=2)
    found = [name for name in names if name.rpartition(".")[2] == last]
    found = found or difflib.get_close_matches(word, names, n=4, cutoff=0.5)
    return (found or [name for name in names if name.rpartition(".")[2] in lasts])[:6]


def headlines(names: list[str]) -> list[str]:
    """The figures that a first look wants, of all there are: no counts, no parts of a sum, one sum of seconds."""
    return [name for name in names if _headline(name, names)]


def _headline(name: str, names: list[str]) -> bool:
    *owners, last = name.split(".")
    nodes = {owner.partition(",")[0] for owner in owners}
    if last in COUNTS or nodes & set(PARTS) or (last == "seconds" and owners):
        return False
    if last == "reward":
        return f"{owners[0]}.true_score" not in names
    return last == "true_score" or not last.startswith(("true_", "eval_margin"))
