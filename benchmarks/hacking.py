"""Does watch=judge fire where a policy games its reward model, and only there? On experiment=tiny's data.

    python benchmarks/hacking.py --out DIR [--seeds 11 12 13]     # writes DIR/hacking.json and hacking.md

Three runs a seed, all from one fine-tuned model, with a judge that knows the true score: the settings of
experiment=tiny; `gamed`, whose reward model learned from ordinary pairs alone and whose policy may go further from the
reference; and `gamed` once more with watch.action=stop. What is in DIR already is not run again.
"""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import arguments, enter, markdown, measure, run

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
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    args = parser.parse_args()
    short = enter(args)

    def one(key: str) -> dict:
        name, _, seed = key.rpartition(" ")
        return through(name, int(seed), short)

    found = measure(Path("hacking.json"), [f"{name} {seed}" for seed in args.seeds for name in RUNS], one)
    Path("hacking.md").write_text(table(found))


def through(name: str, seed: int, short: list[str]) -> dict:
    """PPO by one of RUNS, from the fine-tuned model and the reward model of this seed."""
    model, words = RUNS[name]
    same = [f"seed={seed}", *short]
    sft = run(f"base-{seed}", ["stages=[pretrain,sft]", *same]) / "sft"
    rm = run(f"{model}-{seed}", ["stages=[rm]", f"rm.path={sft}", *REWARD_MODELS[model].split(), *same]) / "rm"
    start = [f"actor.path={sft}", f"reward.path={rm}", f"critic.path={rm}"]
    made = run(f"{name.replace(', ', '-')}-{seed}", ["stages=[ppo]", *start, *same, *WATCH.split(), *words.split()])
    return {"run": name, "seed": seed, **figures(made)}


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
    lines = []
    for row in found.values():
        by_step = {step: f"{score:+.2f}, {judge:.2f}" for step, score, judge in row["seen"]}
        best, fired = row["best"], row["fired"]
        ends = [by_step[0], f"{by_step[best]} (step {best})", f"{by_step[row['steps']]} (step {row['steps']})"]
        lines.append([row["run"], str(row["seed"]), *ends, f"step {fired}" if fired else "no", f"{row['score']:.2f}"])
    return markdown(head, lines)


if __name__ == "__main__":
    main()
