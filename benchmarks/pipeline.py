"""Runs of experiment=tiny, for the benchmarks that compare whole pipelines. Results are kept as they come."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

SHORT = ["debug=default", "zero@actor.zero=none"]
"""Settings of `--short`: three steps a stage."""


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser with the options of every such benchmark: --out and --short."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of the results")
    parser.add_argument("--short", action="store_true", help="three steps a stage, to see that it runs")
    return parser


def enter(args: argparse.Namespace) -> list[str]:
    """Make --out the working folder; the settings that --short adds to a run."""
    args.out.mkdir(parents=True, exist_ok=True)
    os.chdir(args.out)
    return SHORT if args.short else []


def run(name: str, words: list[str]) -> Path:
    """The folder of a run of experiment=tiny, which is made unless it is there."""
    folder = Path("runs") / name / "latest"
    if not (folder / "summary.json").exists():
        command = [sys.executable, "-m", "align", "experiment=tiny", f"name={name}", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"align {' '.join(words)}:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return folder.resolve()


def children_cpu() -> float:
    """CPU seconds of all runs until now."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(file: Path, names: Iterable[str], one: Callable[[str], dict]) -> dict[str, dict]:
    """`one(name)` by name, each written to the JSON file when it is known; what the file has is not done again."""
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in names:
        if name not in found:
            found[name] = one(name)
            file.write_text(json.dumps(found, indent=2) + "\n")
            print(name, found[name], flush=True)
    return found


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rows])
