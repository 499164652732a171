"""SFT, best-of, DPO, IPO, KTO, PPO and RLOO on experiment=tiny: true score, KL to SFT, seconds.

    python benchmarks/preference_methods.py --out DIR [--seed 0]     # writes DIR/methods.json and methods.md

All start from one fine-tuned model; PPO, RLOO and best-of learn from one reward model, and that from the pairs that
DPO, IPO and KTO learn from themselves. What is in DIR already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

REWARD = "reward@preferences.judge=model preferences.judge.path={rm} preferences.samples=8"
METHODS = {
    "best_of": f"stages=[preferences,best_of] preferences.policies={{sft}} best_of.path={{sft}} {REWARD}",
    "dpo": "stages=[dpo]",
    "dpo_sft": "stages=[dpo] dpo.loss=[sigmoid,sft] +dpo.args.loss_weights=[1.0,1.0]",
    "ipo": "stages=[dpo] dpo.loss=ipo",
    "kto": "stages=[kto]",
    "dpo_sampled": f"stages=[preferences,dpo] preferences.policies={{sft}} data@dpo.data=sampled dpo.epochs=4 {REWARD}",
    "kto_sampled": f"stages=[preferences,kto] preferences.policies={{sft}} data@kto.data=sampled kto.epochs=4 {REWARD}",
    "ppo": "stages=[ppo] reward.path={rm} critic.path={rm}",
    "rloo": "stages=[ppo] reward.path={rm} critic=none advantage=rloo rollout.samples_per_prompt=4",
}
NOTES = {
    "best_of": "the best of 8 by the reward model", "dpo_sampled": "best and worst of 8 by the reward model",
    "kto_sampled": "the same answers", "dpo_sft": "and the loss of SFT on the chosen answers",
    "rloo": "four samples a prompt",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    os.chdir(args.out)
    made = Path("runs/base/latest").resolve()
    if not (made / "summary.json").exists():
        run(f"stages=[pretrain,sft,rm] name=base seed={args.seed}")
        made = Path("runs/base/latest").resolve()
    file = Path("methods.json")
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in args.methods:
        if name not in found:
            found[name] = through(name, made, args.seed)
            file.write_text(json.dumps(found, indent=2) + "\n")
            print(name, found[name], flush=True)
    sft = json.loads((made / "summary.json").read_text())
    Path("methods.md").write_text(table(found, sft["true_score"]["sft"]))


def through(name: str, made: Path, seed: int) -> dict:
    """One method from the fine-tuned model; figures of its run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = METHODS[name].format(sft=made / "sft", rm=made / "rm")
    run(f"{words} actor.path={made / 'sft'} name={name} seed={seed}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads((Path("runs") / name / "latest" / "summary.json").read_text())
    stage = next(stage for stage in ("best_of", "dpo", "kto", "ppo") if stage in summary["policies"])
    figures = summary["policies"][stage]
    return {
        "score": figures["true_score"], "kl": figures["kl"], "tokens": figures["length"],
        "seconds": sum(v for stage, v in summary["seconds"].items() if stage != "evaluate"),
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }  # fmt: skip


def run(words: str) -> None:
    command = [sys.executable, "-m", "align", "experiment=tiny", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"align {words}:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")


def table(found: dict, sft: float) -> str:
    lines = [["method", "true score", "KL to SFT", "tokens", "seconds", "CPU s"], ["---"] * 6]
    lines.append(["sft", f"{sft:.2f}", "", "", "", ""])
    for name, row in ((name, found[name]) for name in METHODS if name in found):
        said = f"{name} ({NOTES[name]})" if name in NOTES else name
        figures = [f"{row['score']:.2f}", f"{row['kl']:.1f}", f"{row['tokens']:.0f}", f"{row['seconds']:.0f}"]
        lines.append([said, *figures, f"{row['cpu']:.0f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
