"""Runs as their folders hold them: where they lie, how they ended, their settings and their figures."""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from align.errors import AlignError
from align_runs.compose import ENDED
from align_runs.settings import flat
from align_runs.stages import in_order

DONE = "done"
STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")
"""The name of a run's folder."""
DEPTH = 3
"""Folders between the one that is named and a run: runs, NAME, and a trial of a search."""


@dataclass
class Run:
    label: str
    folder: Path
    state: str
    """`done`, or how it ended: `failed in ppo: …`, `unfinished in sft, step 12`."""
    settings: dict[str, Any]
    """By dotted key, as `settings.flat` gives them."""
    figures: dict[str, float]
    """By dotted name: `sft.eval_loss`, `ppo.true_score`, `seconds`."""


def read(words: list[str]) -> list[Run]:
    """The runs that the words name: folders of a run, of a stage, of many runs, or globs.

    Raises AlignError for a word without a run.
    """
    found = find(words)
    return [_run(label, folder, found[folder]) for label, folder in zip(labels(list(found)), found, strict=True)]


def _run(label: str, folder: Path, meant: list[str] | None) -> Run:
    stages = [stage for stage in stages_of(folder) if meant is None or stage in meant]
    configured = _configured(folder, stages)
    listed = configured.get("stages", [])
    settings = flat(configured, stages if meant else [*stages, *(listed if isinstance(listed, list) else [listed])])
    if settings.get("cpu_linear") == "auto":  # runs differ in what it came to, as far as a card holds that
        del settings["cpu_linear"]
        kinds = [card["cpu_linear"]["kind"] for card in cards(folder, stages).values() if "cpu_linear" in card]
        settings |= {"cpu_linear": kinds[0]} if kinds else {}
    return Run(label, folder, state(folder, stages), settings, figures(folder, stages))


# -- where they lie ---------------------------------------------------------------------------


def find(words: list[str]) -> dict[Path, list[str] | None]:
    """Every run that the words name, in their order: its folder, and the stages that are meant (None: all).

    A link such as `latest` counts where it is named itself. Raises AlignError for a word without a run.
    """
    found: dict[Path, list[str] | None] = {}
    for word in words:
        places = sorted(glob.glob(str(Path(word).expanduser())), key=natural)
        runs = [pair for place in places for pair in _runs_in(Path(place).resolve())]
        if not runs:
            raise AlignError(_nothing(word, places))
        for folder, stage in runs:
            meant = found.setdefault(folder, [])
            found[folder] = None if stage is None or meant is None else [*dict.fromkeys([*meant, stage])]
    return found


def _runs_in(folder: Path, depth: int = DEPTH) -> Iterator[tuple[Path, str | None]]:
    """The runs in a folder, or the one that it is; with a stage's name where it is a stage's folder."""
    if is_stage(folder):
        yield folder.parent, folder.name
    elif folder.is_dir() and (STAMP.fullmatch(folder.name) or any(map(is_stage, folder.iterdir()))):
        yield folder, None  # a run that ended before its first stage has a name alone
    elif depth and folder.is_dir():
        for child in sorted(folder.iterdir(), key=natural):
            if child.is_dir() and not child.is_symlink():
                yield from _runs_in(child, depth - 1)


def is_stage(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file()


def stages_of(run: Path) -> list[str]:
    """The stages that a run has begun, in their order."""
    return in_order(child.name for child in run.iterdir() if is_stage(child))


def natural(path: Path | str) -> list[tuple[int, int, str]]:
    """A key to sort by in which trial_10 comes after trial_9.

    >>> sorted(["trial_10", "trial_9", "latest"], key=natural)
    ['latest', 'trial_9', 'trial_10']
    """
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def labels(folders: list[Path]) -> list[str]:
    """A short name for each run: the time, the trial or NAME where those are enough, else NAME/TIME, and so on."""
    parents = [folder.parent for folder in folders]
    if len(set(parents)) == 1:
        return [folder.name for folder in folders]
    if len({parent.name for parent in parents}) == len(folders):
        return [parent.name for parent in parents]
    depth = next(d for d in range(2, 99) if len({folder.parts[-d:] for folder in folders}) == len(folders))
    return ["/".join(folder.parts[-depth:]) for folder in folders]


def _nothing(word: str, places: list[str]) -> str:
    if places:
        return (
            f"table {word}: it holds no run. Use a run's folder (runs/NAME/TIME), one that holds runs (runs/NAME), "
            "or a stage's (runs/NAME/latest/sft)."
        )
    home = Path(word).expanduser().parent
    beside = [path.name for path in home.iterdir() if path.is_dir()] if home.is_dir() else []
    near = [str(home / name) for name in difflib.get_close_matches(Path(word).name, beside, n=3)]
    return f"table {word}: there is no such folder. Use {' or '.join(near) or 'a folder such as runs/NAME'}."


# -- how they ended, and what stands in them --------------------------------------------------


def state(folder: Path, stages: list[str]) -> str:
    """State in which a run's stages ended; a run that still goes on and one that was killed look the same."""
    whole = all("hashes" in card for card in cards(folder, stages).values())
    if (folder / "summary.json").exists() or (whole and stages != stages_of(folder)):
        return DONE
    if end := read_json(folder / ENDED):
        return f"{end['how']} in {end['stage']}: {end['why']}"
    return f"unfinished in {stages[-1]}, step {_last_step(folder / stages[-1])}" if stages else "ended before a stage"


def _last_step(stage: Path) -> int:
    """The step of the last whole line of metrics.jsonl; 0 where there is none."""
    whole = (stage / "metrics.jsonl").read_text(encoding="utf-8").rpartition("\n")[0]
    return json.loads(whole.rpartition("\n")[2])["step"] if whole else 0


def read_json(file: Path) -> dict[str, Any]:
    """The contents of a file; {} where there is none, or half of one by a run that was stopped."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}


def cards(folder: Path, stages: list[str]) -> dict[str, dict[str, Any]]:
    """The card.json of each stage; one with `hashes`, which are written last, is of a stage that came to its end."""
    return {stage: read_json(folder / stage / "card.json") for stage in stages}


def _configured(folder: Path, stages: list[str]) -> dict[str, Any]:
    """The resolved configuration of a run, as its last stage has it."""
    if not stages:
        return {}
    file = folder / stages[-1] / "config.yaml"
    try:
        return yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    except yaml.YAMLError as error:
        raise AlignError(f"table {file}: it is no yaml any more. Mend the file, or leave this run out.") from error


def figures(folder: Path, stages: list[str]) -> dict[str, float]:
    """Every number that the cards of finished stages hold, and the seconds that each took.

    Figures of a policy that a stage compares with others stand under the policy's name: `ppo.kl`, `sft.true_score`.
    """
    found: dict[str, float] = {}
    policies: dict[str, float] = {}
    for stage, card in cards(folder, stages).items():
        if "hashes" in card:
            compared = card.pop("policies") if isinstance(card.get("policies"), dict) else {}
            policies |= numbers(compared)
            found |= numbers(card, f"{stage}.")
    took = read_json(folder / "summary.json").get("seconds", {})
    seconds = {f"{stage}.seconds": took[stage] for stage in stages if stage in took}
    whole = {"seconds": round(sum(seconds.values()), 1)} if seconds else {}
    return {**found, **{name: value for name, value in policies.items() if name not in found}, **seconds, **whole}


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
