"""Every PEFT method through all stages: what trains, how it reaches the rollouts, what it scores, what it takes.

    python benchmarks/methods.py --out DIR       # about an hour on one core; writes DIR/methods.json and methods.md
    python benchmarks/methods.py --out DIR --methods lora houlsby --others

Ten methods in every role (SFT, reward model, actor, critic) of the whole of experiment=tiny, from one pretrained model;
all others three steps a stage. What is in DIR already is not run again. The rates are experiment=tiny's for LoRA and
what they are for each method by align/peft/rates.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pipeline import SHORT, arguments, children_cpu, enter, markdown, measure, run

WHOLE = ("none", "lora", "adalora", "qlora", "prefix", "p_tuning", "p_tuning_v2", "houlsby", "pfeiffer", "parallel")
OTHERS = (
    "lora_r1", "rslora", "dora", "pissa", "ia3", "oft", "boft", "loha", "lokr", "vera", "miss", "ln_tuning", "prompt",
    "trainable_tokens",
)  # fmt: skip
ROLES = ("sft", "rm", "actor", "critic")
TOKENS = f"[{','.join(map(str, range(4, 64)))}]"
NEEDED = {
    "adalora": ["zero@actor.zero=none"],  # it reads gradients that DeepSpeed has dropped
    "trainable_tokens": [f"{role}.peft.token_indices={TOKENS}" for role in ROLES],
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="*", default=WHOLE)
    parser.add_argument("--others", nargs="*", default=OTHERS)
    args = parser.parse_args()
    short = enter(args)
    base = run("base", ["stages=[pretrain]", "evaluate.judge=null", *short]) / "pretrain"
    untied = with_a_head_of_its_own(base)

    def one(method: str) -> dict:
        words = SHORT if method not in args.methods else short
        return through(method, untied if method == "trainable_tokens" else base, words)

    found = measure(Path("methods.json"), [*args.methods, *args.others], one)
    Path("methods.md").write_text(tables(found, args.methods))


def through(method: str, base: Path, short: list[str]) -> dict:
    """One method in every role; figures of its run."""
    before = children_cpu()
    words = [f"peft@{role}.peft={method}" for role in ROLES] + NEEDED.get(method, [])
    folder = run(method, ["stages=[sft,rm,ppo]", f"model={base}", *words, *short])
    summary = json.loads((folder / "summary.json").read_text())
    steps = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    cards = {stage: json.loads((folder / stage / "card.json").read_text()) for stage in ("sft", "rm", "ppo")}
    return {
        "share": share(method, base), "engine": summary["rollout_engine"], "route": route(method),
        "sft_score": (summary["true_score"] or {}).get("sft"), "score": (summary["true_score"] or {}).get("ppo"),
        "accuracy": cards["rm"].get("eval_accuracy"), "kl": summary["kl"],
        "kl_at_0": next(row["objective/kl"] for row in steps if "objective/kl" in row),
        "bytes": next((row["sync/bytes"] for row in reversed(steps) if "sync/bytes" in row), 0),
        "seconds": summary["seconds"],
        "cpu": children_cpu() - before,
    }  # fmt: skip


def share(method: str, base: Path) -> float:
    """Of all parameters of the language model, those that train."""
    from transformers import AutoConfig

    from align.cli.methods import count

    if method == "none":
        return 1.0
    trained, whole = count(config_of(method), AutoConfig.from_pretrained(base))
    return trained / whole


def route(method: str) -> str:
    from align.peft.routes import route

    return "full" if method == "none" else route(config_of(method)).mode


def config_of(method: str):
    from align.cli import methods

    return methods.method(method, [f"token_indices={TOKENS}"] if method == "trainable_tokens" else [])


def with_a_head_of_its_own(base: Path) -> Path:
    """The same model, whose head is a copy of its embedding: single tokens cannot train in a tied one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = Path("untied").resolve()
    if not folder.exists():
        model = AutoModelForCausalLM.from_pretrained(base)
        config = AutoConfig.from_pretrained(base)
        config.tie_word_embeddings = False
        state = {**model.state_dict(), "lm_head.weight": model.get_input_embeddings().weight.detach().clone()}
        type(model).from_pretrained(None, config=config, state_dict=state).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def tables(found: dict, whole: list[str]) -> str:
    """Markdown: the methods that went through the whole experiment, and the others."""
    full = {m: row for m, row in found.items() if m in whole}
    few = {m: row for m, row in found.items() if m not in whole}
    first = table(
        ["SFT score", "reward accuracy", "PPO score", "KL", "CPU s"], full,
        lambda r: [
            f"{r['sft_score']:.2f}", f"{r['accuracy']:.3f}", f"{r['score']:.2f}", f"{r['kl']:.1f}", f"{r['cpu']:.0f}",
        ],
    )  # fmt: skip
    return first + "\n" + table(["KL at step 0"], few, lambda r: [f"{r['kl_at_0']:.0e}"])


def table(columns: list[str], rows: dict, cells: Callable[[dict], list[str]]) -> str:
    head = ["method", "trains", "rollouts", "bytes a sync", "seconds (sft, rm, ppo)", *columns]
    lines = []
    for method, row in rows.items():
        took = ", ".join(f"{row['seconds'][stage]:.0f}" for stage in ("sft", "rm", "ppo"))
        way = f"{row['route']}, {row['engine']}"
        lines.append([method, f"{row['share']:.2%}", way, f"{row['bytes']:,.0f}", took, *cells(row)])
    return markdown(head, lines)


if __name__ == "__main__":
    main()
