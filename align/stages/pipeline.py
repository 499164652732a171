"""The stages of a run in turn: all checks first, then the work, each stage in a folder with its card.

No torch at import: what can be known early is known before anything loads.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from align.errors import AlignError
from align.plan.plan import RunPlan, StagePlan
from align.report.json_text import json_text
from align.stages.fingerprint import fingerprints

ENDED = "ended.json"
"""In a run's folder beside no summary.json: the stage in which it ended, how (failed, stopped or pruned) and why."""


def check_place(root: Path, name: str) -> None:
    """Raise AlignError if runs/NAME/TIME cannot be made; makes nothing."""
    home = root / name
    place = next(folder for folder in (home, *home.absolute().parents) if os.path.lexists(folder))
    if not place.is_dir():
        raise AlignError(f"runs={root}: {place} is a file, and runs go into folders\n  use runs=FOLDER or name=NAME")
    if not os.access(place, os.W_OK | os.X_OK):
        raise AlignError(f"runs={root}: nothing can be written into {place}\n  use runs=FOLDER, one of your own")
    latest = home / "latest"
    if latest.exists() and not latest.is_symlink():
        raise AlignError(f"{latest} is no link that align made, and would be replaced\n  move it, or use name=NAME")


def new_folder(root: Path, name: str) -> Path:
    """runs/NAME/TIME, made now and pointed to by runs/NAME/latest; a second run in one second gets another."""
    home = root / name
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        home.mkdir(parents=True, exist_ok=True)
        folder = next(folder for folder in _names(home, stamp) if _made(folder))
        fresh = home / f".latest-{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder.name)
        fresh.replace(home / "latest")
    except OSError as error:
        raise AlignError(f"runs={root}: no folder can be made there ({error})\n  use runs=FOLDER") from error
    return folder


def _names(home: Path, stamp: str) -> Iterator[Path]:
    yield home / stamp
    for number in itertools.count(1):
        yield home / f"{stamp}_{number}"


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def run(
    plan: RunPlan,
    look: Callable[[], None],
    make_stages: Callable[[], list[tuple[StagePlan, Any]]],
    make_report: Callable[[Path], Any],
    config_yaml: str,
) -> dict[str, Any]:
    """Check every stage, make the run's folder, run the stages in turn; return the summary.

    `look` raises what can be known before a stage is made, which imports torch.
    """
    home = Path(plan.runs).expanduser(), plan.name
    check_place(*home)
    look()
    steps = make_stages()
    for stage, step in steps:
        step.check(stage.known())
    from align.engine.linear import kernel_facts
    from align.report.model_card import write_model_card
    from align.stages.later import check_later  # they bring in torch, as the stages have by now

    check_later(steps)
    folder = new_folder(*home)
    report = make_report(folder)
    made: dict[str, str] = {}
    cards: dict[str, dict] = {}
    try:
        for stage, step in steps:
            out = folder / stage.name
            out.mkdir()
            (out / "config.yaml").write_text(config_yaml, encoding="utf-8")
            with end_kept(folder, stage.name), report.stage(stage.name, out) as stage_report:
                inputs = {one.name: made[one.source] if one.source else one.real for one in stage.inputs}
                step.run(inputs, out, stage_report)
                hashes = fingerprints(inputs, stage_report.card.get("base"))
                stage_report.write_card(hashes=hashes, cpu_linear=kernel_facts())
                write_model_card(out, stage_report.card)
                open_to_others(out)
            made[stage.name] = str(out.resolve())
            cards[stage.name] = stage_report.card
    finally:
        report.close()
    summary = {**summarise(cards, report.seconds, folder), "outline": report.outline}
    (folder / "summary.json").write_text(json_text(summary, indent=2) + "\n", encoding="utf-8")
    report.finish(summary)
    return summary


def open_to_others(folder: Path) -> None:
    """Give all files of a folder the mode that new files have: safetensors makes its own for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(0o666 & ~mask)


@contextmanager
def end_kept(folder: Path, stage: str) -> Iterator[None]:
    """Leave ended.json in the run's folder if the block raises; a process that is killed leaves none."""
    try:
        yield
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        write_end(folder, stage, "failed", line if isinstance(error, AlignError) else f"{type(error).__name__}: {line}")
        raise
    except BaseException:  # Ctrl-C
        write_end(folder, stage, "stopped", "interrupted")
        raise


def write_end(folder: Path, stage: str, how: str, why: str) -> None:
    (folder / ENDED).write_text(json_text({"stage": stage, "how": how, "why": why}) + "\n")


def summarise(cards: dict[str, dict], seconds: dict[str, float], folder: Path) -> dict[str, Any]:
    """The figures of a run in one place: summary.json."""
    evaluated = cards.get("evaluate", {})
    policies = evaluated.get("policies", {})
    rm = cards.get("rm", {})
    return {
        "run": str(folder),
        "true_score": {name: figures["true_score"] for name, figures in policies.items() if "true_score" in figures},
        "reward_accuracy": evaluated.get("reward_accuracy", rm.get("eval_accuracy")),
        "swap_accuracy": evaluated.get("swap_accuracy", rm.get("swap_accuracy")),
        "kl": policies.get("ppo", {}).get("kl"),
        "samples": evaluated.get("samples"),
        "rollout_engine": cards.get("ppo", {}).get("rollout_engine"),
        "policies": policies,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
