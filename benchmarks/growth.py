"""How a PPO step's cost grows: batch, response, vocabulary and model, each doubled twice.

    python benchmarks/growth.py        # a few minutes; writes benchmarks/results/DATE-growth.json and .md

From 32 prompts of 16-64 tokens, 64 new tokens, a vocabulary of 8192 and 10.5M parameters; full fine-tuning, a critic
of its own, one epoch of one minibatch in micro-batches of 8, float32, torch's linear. Every point is the second step
of a process of its own.

Shapes: D hidden size, V vocabulary.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path

from meter import Meter, prepare

START = {"batch": 32, "new_tokens": 64, "vocabulary": 8192, "model": "10.5M"}
GROWS = {
    "batch": (32, 64, 128), "new_tokens": (64, 128, 256), "vocabulary": (8192, 16384, 32768),
    "model": ("10.5M", "20.5M", "42M"),
}  # fmt: skip
SHORT = {"batch": 8, "new_tokens": 8, "vocabulary": 8192, "model": "1M"}
MODELS = {"1M": (64, 2, 2), "10.5M": (256, 6, 4), "20.5M": (384, 6, 6), "42M": (512, 8, 8)}
"""Hidden size, layers, heads; the MLP is four times as wide."""
PHASES = ("generate", "score", "reward", "update")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", default="build/benchmark")
    parser.add_argument("--grow", nargs="+", choices=list(GROWS), default=list(GROWS))
    parser.add_argument("--short", action="store_true", help="the smallest point alone, to see that it runs")
    parser.add_argument("--point", help="one point, as JSON; for the processes that this script starts")
    parser.add_argument("--out", default=str(Path(__file__).resolve().parent / "results"))
    args = parser.parse_args()
    prepare()
    if args.point:
        print(json.dumps(measure(Path(args.fixtures), json.loads(args.point))))
        return
    start, grows = (SHORT, {}) if args.short else (START, {name: GROWS[name] for name in args.grow})
    points: dict[str, dict] = {}
    for point in [start] + [{**start, name: value} for name in grows for value in grows[name][1:]]:
        command = [sys.executable, __file__, "--fixtures", args.fixtures, "--point", json.dumps(point)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{point}:\n{done.stderr[-2000:]}")
        points[json.dumps(point)] = found = json.loads(done.stdout.splitlines()[-1])
        print(point, found["total"], "CPU s", found["mib"], "MiB", flush=True)
    write(Path(args.out), start, grows, points)


def measure(fixtures: Path, point: dict) -> dict:
    """Seconds by phase of a second step, memory, and floating-point operations by reckoning."""
    import torch
    from fixtures import make
    from ppo_step import build, prompts

    import align.ppo.step  # noqa: F401

    folder = make(fixtures)
    path = models(folder, point)
    peak = matmul_peak()
    meter = Meter()
    ppo, _ = build(path, "full", None, "own", "torch", point["batch"], point["new_tokens"], epochs=1)
    parts = ((ppo.engine, "generate"), (ppo.roles, "score"), (ppo, "score_texts"), (ppo, "update"))
    for (part, name), phase in zip(parts, PHASES):
        meter.wrap(part, name, phase)
    rows = prompts(folder)
    meter.start()
    for step in range(2):
        ppo.step(rows[point["batch"] * step : point["batch"] * (step + 1)])
        meter.end_step()
    meter.stop()
    seconds = {phase: meter.steps[1][phase] for phase in PHASES}
    rollout = ppo.last[0]
    work = operations(ppo.roles.actor.model, rollout)
    tokens = int(rollout.response_mask_BT.sum())
    return {
        **point, "seconds": seconds, "total": round(sum(meter.steps[1].values()), 2),
        "mib": round(meter.top - meter.base), "tokens": tokens, "threads": torch.get_num_threads(),
        "tokens_a_cpu_second": round(tokens / seconds["generate"]), "gflops_peak": round(peak / 1e9),
        "gflops": {phase: round(work[phase] / seconds[phase] / 1e9, 1) for phase in PHASES},
        "share_of_peak": {phase: round(work[phase] / seconds[phase] / peak, 3) for phase in PHASES},
    }  # fmt: skip


def models(folder: Path, point: dict) -> Path:
    """A random policy, critic and reward model of the point's size, made once."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    path = folder / f"growth-{point['model']}-{point['vocabulary']}"
    if (path / "ready").exists():
        return path
    hidden, layers, heads = MODELS[point["model"]]
    config = LlamaConfig(
        vocab_size=point["vocabulary"], hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name in ("policy", "value", "reward"):
        config.num_labels = 1
        kind = LlamaForCausalLM if name == "policy" else LlamaForSequenceClassification
        kind(config).save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    (path / "ready").write_text("")
    return path


def matmul_peak() -> float:
    """Floating-point operations a CPU second of a large float32 product: the best of ten."""
    import torch

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    best = float("inf")
    for _ in range(10):
        before = time.process_time()
        a @ b
        best = min(best, time.process_time() - before)
    return 2 * 2048**3 / best


def operations(model, rollout) -> dict[str, float]:
    """Floating-point operations by phase: products of weights, and of attention over what a token sees.

    A pass forward takes two a weight and token; the head runs over responses alone; an update takes three passes of
    policy and critic.
    """
    config, head = model.config, model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2) - 2 * head
    length_B, tokens = rollout.length_B().double(), int(rollout.response_mask_BT.sum())
    attention = 2.0 * config.num_hidden_layers * config.hidden_size * float((length_B**2).sum())
    trunk = 2.0 * body * float(length_B.sum()) + attention
    logits = 2.0 * head * tokens
    return {
        "generate": trunk + logits, "score": 2 * trunk + logits, "reward": trunk, "update": 3 * (2 * trunk + logits)
    }  # fmt: skip


def write(out: Path, smallest: dict, grows: dict[str, tuple], points: dict[str, dict]) -> None:
    """JSON, and a table with the ratio of each point to the one before."""
    from against_trl import processor

    start = points[json.dumps(smallest)]
    lines = [
        f"# Growth of a PPO step, {datetime.date.today().isoformat()}",
        "",
        f"{processor()}, {start['threads']} threads, {start['gflops_peak']} GFLOP a CPU second at the peak. "
        "In brackets: to the row before.",
        "",
        "| | CPU s | generate | score | reward | update | MiB | tokens a CPU s | share of the peak, update |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, values in grows.items():
        before = None
        for value in values:
            point = points[json.dumps({**smallest, name: value})]
            times = f" (x {point['total'] / before['total']:.2f})" if before else ""
            more = f" (x {point['mib'] / before['mib']:.2f})" if before else ""
            phases = " | ".join(f"{point['seconds'][phase]:.1f}" for phase in PHASES)
            lines.append(
                f"| {name} {value} | {point['total']:.1f}{times} | {phases} | {point['mib']}{more} "
                f"| {point['tokens_a_cpu_second']} | {point['share_of_peak']['update']:.0%} |"
            )
            before = point
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{datetime.date.today().isoformat()}-growth"
    stem.with_suffix(".json").write_text(json.dumps(list(points.values()), indent=1) + "\n")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
