"""align's PPO and TRL's, learning the same thing with the same settings: score, KL to the reference and CPU seconds.

    python benchmarks/learning.py                      # 60 steps, three seeds, both sides in turn

A pretrained model of 260 thousand parameters goes on with stories, and a rule scores them (stories.py). First both
sides take three steps on the same completions, whose figures must agree; then each writes its own. TRL 1.12 has an
environment of its own, as in against_trl.py. Everything goes to benchmarks/results/DATE-learning.json, .md and .png.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

import stories
from against_trl import HERE, environment, measure, processor

LAST, SMOOTH, SHARED_STEPS = 10, 5, 3
"""Steps that the table is a mean over, that a point of the plot is a mean over, and on the same completions."""
SAME = 1e-4
"""Figures of the same completions that differ by more are not float32's rounding."""
COLOURS = {"align": "tab:blue", "trl": "tab:orange"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(stories.MODEL))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--cache", default=str(Path.home() / ".cache" / "align-benchmark"))
    parser.add_argument("--out", default=str(HERE / "results"))
    args = parser.parse_args()
    stories.check_model(args.model)
    if find_spec("matplotlib") is None:
        raise SystemExit("the plot needs matplotlib\n  use pip install 'matplotlib>=3.9', or pip install -e '.[bench]'")
    sides = {
        "trl": (environment(Path(args.cache) / "trl-1.12"), "learning_trl.py"),
        "align": (sys.executable, "learning_align.py"),
    }

    def run(side: str, steps: int, seed: int, *more: str) -> dict:
        options = ["--model", args.model, "--steps", str(steps), "--seed", str(seed), *more]
        return measure(*sides[side], options, args.threads)

    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        same = [run(side, SHARED_STEPS, args.seeds[0], "--completions", file.name) for side in ("align", "trl")]
    print("the same completions: figures differ by", f"{difference(same):.1e}", "at most", flush=True)
    if difference(same) > SAME:
        raise SystemExit("the two sides do not take the same steps on the same completions: nothing to compare")
    runs = []
    for seed in args.seeds:
        for side in sides:
            runs.append(run(side, args.steps, seed))
            print(side, "seed", seed, {name: round(x, 3) for name, x in summary(runs[-1]).items()}, flush=True)
    write(Path(args.out), facts(args), same, runs)


def facts(args: argparse.Namespace) -> dict:
    named = ("BATCH", "TOKENS", "EPOCHS", "RATE", "KL_COEF", "CLIP", "VALUE_CLIP", "GAMMA", "LAM", "BETAS", "EPSILON")
    return {
        "date": datetime.date.today().isoformat(), "processor": processor(), "cores": os.cpu_count(),
        "threads": args.threads, "load": os.getloadavg()[0], "steps": args.steps, "torch": version("torch"),
        "settings": {name.lower(): getattr(stories, name) for name in named},
    }  # fmt: skip


def summary(run: dict) -> dict[str, float]:
    score, kl = (mean(step[name] for step in run["steps"][-LAST:]) for name in ("score", "kl"))
    seconds = sum(step["cpu"] for step in run["steps"])
    return {"score": score, "kl": kl, "objective": score - stories.KL_COEF * kl, "cpu": seconds}


def difference(same: list[dict]) -> float:
    """The largest between both sides' figures, seconds aside."""
    ours, theirs = (run["steps"] for run in same)
    return max(abs(one[name] - other[name]) for one, other in zip(ours, theirs) for name in one if name != "cpu")


def write(out: Path, machine: dict, same: list[dict], runs: list[dict]) -> None:
    """The figures as JSON, the table and the plot."""
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{machine['date']}-learning"
    stem.with_suffix(".json").write_text(
        json.dumps({"machine": machine, "same_completions": same, "runs": runs}, indent=1) + "\n"
    )
    text = "\n".join([*head(machine, same), "", *table(runs), "", f"![score]({stem.name}.png)"]) + "\n"
    stem.with_suffix(".md").write_text(text)
    plot(runs, stem.with_suffix(".png"))
    print(text)


def head(machine: dict, same: list[dict]) -> list[str]:
    settings = ", ".join(f"{name} {value}" for name, value in machine["settings"].items())
    return [
        f"# Learning, align and TRL 1.12, {machine['date']}",
        "",
        f"{machine['processor']}, {machine['cores']} cores, threads: {machine['threads']}; torch {machine['torch']}. "
        f"{machine['steps']} PPO steps; {settings}. Score and KL (k1, nats a completion) are means of the last {LAST} "
        "steps; the objective is score - kl_coef KL.",
        "",
        f"On the same completions for {SHARED_STEPS} steps, score, KL, both losses and approximate KL of the two sides "
        f"differ by {difference(same):.1e} at most.",
    ]


def table(runs: list[dict]) -> list[str]:
    """A row a run, and a row a side; ratios of CPU seconds to TRL's run of the same seed."""
    peers = {run["seed"]: summary(run)["cpu"] for run in runs if run["side"] == "trl"}
    names = ["side", "seed", "score at step 1", "score", "KL", "objective", "CPU s", "ratio"]
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for side in ("trl", "align"):
        mine = [run for run in runs if run["side"] == side]
        rows = [
            [run["steps"][0]["score"], *summary(run).values(), summary(run)["cpu"] / peers[run["seed"]]] for run in mine
        ]
        named = [(str(run["seed"]), row) for run, row in zip(mine, rows)]
        for seed, row in [*named, ("mean", [mean(column) for column in zip(*rows)])]:
            numbers = " | ".join(f"{x:.{digits}f}" for x, digits in zip(row, (3, 3, 2, 3, 1, 2)))
            lines.append(f"| {side} | {seed} | {numbers} |")
    return lines


def plot(runs: list[dict], file: Path) -> None:
    """Score against KL and against CPU seconds: seeds thin, their mean thick."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_kl, by_time) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for side, colour in COLOURS.items():
        seeds = [curves(run) for run in runs if run["side"] == side]
        means = [[mean(values) for values in zip(*curve)] for curve in zip(*seeds)]
        for (score, kl, seconds), width, alpha, label in [
            *((curve, 0.8, 0.4, None) for curve in seeds), (means, 2.2, 1.0, f"{side}, mean of {len(seeds)} seeds"),
        ]:  # fmt: skip
            by_kl.plot(kl, score, color=colour, linewidth=width, alpha=alpha, label=label)
            by_time.plot(seconds, score, color=colour, linewidth=width, alpha=alpha, label=label)
    by_kl.set(xlabel="KL to the reference, nats a completion", ylabel=f"score, mean of {SMOOTH} steps")
    by_time.set(xlabel="CPU seconds")
    by_time.legend(loc="lower right")
    figure.savefig(file, dpi=120)


def curves(run: dict) -> list[list[float]]:
    """Score and KL as running means, and the seconds spent so far."""
    steps = run["steps"]
    size = min(SMOOTH, len(steps))
    ends = range(size, len(steps) + 1)
    score, kl = ([mean(step[name] for step in steps[end - size : end]) for end in ends] for name in ("score", "kl"))
    return [score, kl, [sum(step["cpu"] for step in steps[:end]) for end in ends]]


if __name__ == "__main__":
    main()
