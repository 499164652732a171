"""Where runs lie: run folders, stage folders, globs, and folders that hold many."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterator
from pathlib import Path

from align.errors import AlignError

STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")
"""The name of a run's folder."""
DEPTH = 3
"""Folders between what is named and a run: runs, NAME, and a trial of a search."""


def find(words: list[str]) -> dict[Path, list[str] | None]:
    """Every run that the words name, in their order: its folder, and the stages that are meant (None: all).

    A link such as `latest` counts where it is named itself. Raises AlignError for a word without a run.
    """
    found: dict[Path, list[str] | None] = {}
    for word in words:
        places = sorted(glob.glob(str(Path(word).expanduser())), key=natural)
        runs = [pair for place in places for pair in runs_in(Path(place).resolve())]
        if not runs:
            raise AlignError(_nothing(word, places))
        for folder, stage in runs:
            meant = found.setdefault(folder, [])
            found[folder] = None if stage is None or meant is None else [*dict.fromkeys([*meant, stage])]
    return found


def runs_in(folder: Path, depth: int = DEPTH) -> Iterator[tuple[Path, str | None]]:
    """The runs in a folder, or the one that it is; with a stage's name where it is a stage's folder."""
    if is_stage(folder):
        yield folder.parent, folder.name
    elif is_run(folder):
        yield folder, None
    elif depth and folder.is_dir():
        for child in sorted(folder.iterdir(), key=natural):
            if child.is_dir() and not child.is_symlink():
                yield from runs_in(child, depth - 1)


def is_stage(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file()


def is_run(folder: Path) -> bool:
    """It holds a stage, or has a run's name: one that ended before its first stage holds nothing."""
    return folder.is_dir() and (bool(STAMP.fullmatch(folder.name)) or any(map(is_stage, folder.iterdir())))


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
    if len(set(parents)) == len(folders) == len({parent.name for parent in parents}):
        return [parent.name for parent in parents]
    depth = next(d for d in range(2, 99) if len({folder.parts[-d:] for folder in folders}) == len(folders))
    return ["/".join(folder.parts[-depth:]) for folder in folders]


def _nothing(word: str, places: list[str]) -> str:
    if places:
        return (
            f"table: there is no run in {word}\n  write a run's folder (runs/NAME/TIME), "
            "one that holds runs (runs/NAME), or a stage's (runs/NAME/latest/sft)"
        )
    home = Path(word).expanduser().parent
    beside = [path.name for path in home.iterdir() if path.is_dir()] if home.is_dir() else []
    near = [str(home / name) for name in difflib.get_close_matches(Path(word).name, beside, n=3)]
    hint = f"nearest: {', '.join(near)}" if near else "write a folder such as runs/NAME"
    return f"table: there is no folder {word}\n  {hint}"
