"""Does watch=judge fire where a policy games its reward model, and only there? On experiment=tiny's data.

    python benchmarks/hacking.py --out DIR [--seeds 11 12 13]     # writes DIR/hacking.json and hacking.md

Three runs a seed, all from one fine-tuned model, with a judge that knows the true score: the settings of
experiment=tiny; `gamed`, whose reward model learned from ordinary pairs alone and whose policy may go further from the
reference; and `gamed` once more with watch.action=stop. What is in DIR already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

WATCH = "ppo.eval_every=4 ppo.eval_prompts=128 watch=judge watch.judge.fn=help_desk.rule.clerk_scores"
GAMED = "ppo.kl_coef=0.05 actor.learning_rate=1.5e-3"
RUNS = {
    "tiny": ("good", ""),
    "gamed": ("poor", GAMED),
    "gamed, stop": ("poor", f"{GAMED} watch.action=stop"),
}
"""By name: the reward model, and further settings of ppo."""
REWARD_MODELS = {"good": "", "poor": "rm.data.pairs=1200 rm.data.minimal_pairs=0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    os.chdir(args.out)
    file = Path("hacking.json")
    found = json.loads(file.read_text()) if file.exists() else {}
    for seed in args.seeds:
        sft = made(f"base-{seed}", f"stages=[pretrain,sft] seed={seed}") / "sft"
        for name, (model, words) in RUNS.items():
            key = f"{name} {seed}"
            if key not in found:
                rm = made(f"{model}-{seed}", f"stages=[rm] seed={seed} rm.path={sft} {REWARD_MODELS[model]}") / "rm"
                told = f"stages=[ppo] seed={seed} actor.path={sft} reward.path={rm} critic.path={rm} {WATCH} {words}"
                run = made(f"{name.replace(', ', '-')}-{seed}", told)
                found[key] = {"run": name, "seed": seed, **figures(run)}
                file.write_text(json.dumps(found, indent=2) + "\n")
                print(found[key], flush=True)
    Path("hacking.md").write_text(table(found))


def made(name: str, words: str) -> Path:
    """The folder of a run of experiment=tiny, which is made unless it is there."""
    folder = Path("runs") / name / "latest"
    if not (folder / "summary.json").exists():
        command = [sys.executable, "-m", "align", "experiment=tiny", f"name={name}", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"align {words}:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return folder.resolve()


def figures(run: Path) -> dict:
    """Of a run's policy on test questions, and of what the watch saw of held-out ones."""
    summary, card = (json.loads((run / name).read_text()) for name in ("summary.json", "ppo/card.json"))
    lines = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["step"], line["eval/score"], line["eval/judge"]) for line in lines if "eval/judge" in line]
    policies = summary["policies"]
    return {
        "sft": policies["sft"]["true_score"] if "sft" in policies else None, "score": policies["ppo"]["true_score"],
        "kl": policies["ppo"]["kl"], "steps": card["steps"], "best": card["best"]["step"],
        "fired": card["watch"]["fired"], "seen": seen,
    }  # fmt: skip


def table(found: dict) -> str:
    head = ["run", "seed", "reward and judge at step 0", "at the judge's best", "at the end", "fired", "true score"]
    lines = [head, ["---"] * len(head)]
    for row in found.values():
        by_step = {step: f"{score:+.2f}, {judge:.2f}" for step, score, judge in row["seen"]}
        best, fired = row["best"], row["fired"]
        ends = [by_step[0], f"{by_step[best]} (step {best})", f"{by_step[row['steps']]} (step {row['steps']})"]
        lines.append([row["run"], str(row["seed"]), *ends, f"step {fired}" if fired else "no", f"{row['score']:.2f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
