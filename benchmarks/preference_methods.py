"""SFT, best-of, DPO, IPO, KTO, PPO and RLOO on experiment=tiny: true score, KL to SFT, seconds.

    python benchmarks/preference_methods.py --out DIR [--seed 0]     # writes DIR/methods.json and methods.md

All start from one fine-tuned model; PPO, RLOO and best-of learn from one reward model, and that from the pairs that
DPO, IPO and KTO learn from themselves. What is in DIR already is not run again.
"""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import arguments, children_cpu, enter, markdown, measure, run

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
    "kto_sampled": "the same completions", "dpo_sft": "and the loss of SFT on the chosen completions",
    "rloo": "four samples a prompt",
}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    same = [f"seed={args.seed}", *enter(args)]
    base = run("base", ["stages=[pretrain,sft,rm]", *same])
    found = measure(Path("methods.json"), args.methods, lambda name: through(name, base, same))
    sft = json.loads((base / "summary.json").read_text())["true_score"]["sft"]
    Path("methods.md").write_text(table(found, sft))


def through(name: str, base: Path, same: list[str]) -> dict:
    """One method from the fine-tuned model; figures of its run."""
    before = children_cpu()
    words = METHODS[name].format(sft=base / "sft", rm=base / "rm").split()
    folder = run(name, [*same, *words, f"actor.path={base / 'sft'}"])
    summary = json.loads((folder / "summary.json").read_text())
    stage = next(stage for stage in ("best_of", "dpo", "kto", "ppo") if stage in summary["policies"])
    figures = summary["policies"][stage]
    return {
        "score": figures["true_score"], "kl": figures["kl"], "tokens": figures["length"],
        "seconds": sum(v for stage, v in summary["seconds"].items() if stage != "evaluate"),
        "cpu": children_cpu() - before,
    }  # fmt: skip


def table(found: dict, sft: float) -> str:
    lines = [["sft", f"{sft:.2f}", "", "", "", ""]]
    for name, row in ((name, found[name]) for name in METHODS if name in found):
        label = f"{name} ({NOTES[name]})" if name in NOTES else name
        figures = [f"{row['score']:.2f}", f"{row['kl']:.1f}", f"{row['tokens']:.0f}", f"{row['seconds']:.0f}"]
        lines.append([label, *figures, f"{row['cpu']:.0f}"])
    return markdown(["method", "true score", "KL to SFT", "tokens", "seconds", "CPU s"], lines)


if __name__ == "__main__":
    main()
