"""A run as its folder tells it: its stages, how it ended, its settings and its figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from align.errors import AlignError
from align.stages.pipeline import ENDED, STAGES
from align.tables.figures import figures, read_json
from align.tables.find import find, is_stage, labels
from align.tables.settings import flat

DONE = "done"


@dataclass
class Run:
    label: str
    folder: Path
    state: str
    """`done`, or what became of it: `failed in ppo: …`, `unfinished in sft, step 12`."""
    settings: dict[str, Any]
    """By dotted key, as `settings.flat` gives them."""
    figures: dict[str, float]


def read(words: list[str]) -> list[Run]:
    """The runs that the words name. Raises AlignError for a word without a run."""
    found = find(words)
    runs = []
    for label, (folder, meant) in zip(labels(list(found)), found.items(), strict=True):
        stages = [stage for stage in stages_of(folder) if meant is None or stage in meant]
        configured = _settings(folder, stages)
        settings = flat(configured, stages if meant else [*stages, *_listed(configured.get("stages", []))])
        if settings.get("cpu_linear") == "auto":  # what it came to, as far as a card tells, is what runs differ in
            del settings["cpu_linear"]
            cards = [read_json(folder / stage / "card.json") for stage in stages]
            kinds = [card["cpu_linear"]["kind"] for card in cards if "cpu_linear" in card]
            settings |= {"cpu_linear": kinds[0]} if kinds else {}
        runs.append(Run(label, folder, state(folder, stages), settings, figures(folder, stages)))
    return runs


def stages_of(folder: Path) -> list[str]:
    """The stages that a run has begun, in their order."""
    begun = [child.name for child in folder.iterdir() if is_stage(child)]
    return sorted(begun, key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name))


def state(folder: Path, stages: list[str]) -> str:
    """What became of a run's stages; a run that still goes on and one that was killed look the same."""
    whole = all("hashes" in read_json(folder / stage / "card.json") for stage in stages)
    if (folder / "summary.json").exists() or (whole and stages != stages_of(folder)):
        return DONE
    if end := read_json(folder / ENDED):
        return f"{end['how']} in {end['stage']}: {end['why']}"
    return f"unfinished in {stages[-1]}, step {last_step(folder / stages[-1])}" if stages else "ended before a stage"


def last_step(stage: Path) -> int:
    """The step of the last whole line of metrics.jsonl; 0 where there is none."""
    whole = (stage / "metrics.jsonl").read_text().rpartition("\n")[0]
    return json.loads(whole.rpartition("\n")[2])["step"] if whole else 0


def _settings(folder: Path, stages: list[str]) -> dict[str, Any]:
    """The resolved configuration of the last stage, with each stage's own node as that stage had it."""
    merged: dict[str, Any] = {}
    texts: dict[str, dict[str, Any]] = {}
    for stage in stages:
        text = (folder / stage / "config.yaml").read_text()
        if text not in texts:
            texts[text] = _parsed(text, folder / stage / "config.yaml")
        own = {name: merged[name] for name in stages[: stages.index(stage)] if name in merged}
        merged = {**texts[text], **own}
    return merged


def _listed(stages: Any) -> list[str]:
    return stages if isinstance(stages, list) else [stages]


def _parsed(text: str, file: Path) -> dict[str, Any]:
    try:
        found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise AlignError(f"table: {file} is no yaml any more\n  leave that run out, or mend the file") from error
    return found if isinstance(found, dict) else {}
