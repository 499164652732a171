"""Tokens a CPU second of each rollout engine, on the trainer's weights and on its own.

    python benchmarks/rollouts.py --repeats 3

The 34M Llama of memory.py with a LoRA of rank 16; 32 prompts of 16-64 tokens, 64 new tokens each. vLLM with copies of
its own packs its weights for oneDNN; on the trainer's weights it cannot. Each engine has a process to itself;
its second generation counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from meter import prepare

ENGINES = ("hf", "vllm own", "vllm shared")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fixtures", default="build/benchmark")
    parser.add_argument("--size", choices=["34m", "1m"], default="34m")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--engine", choices=ENGINES, help="one engine; for the processes that this script starts")
    args = parser.parse_args()
    prepare()
    if args.engine:
        print(json.dumps(measure(args.engine, Path(args.fixtures) / args.size)))
        return
    from memory import made

    made(args.fixtures, args.size)
    same = ["--fixtures", args.fixtures, "--size", args.size]
    found: dict[str, list[float]] = {engine: [] for engine in args.engines}
    for _ in range(args.repeats):
        for engine in args.engines:
            done = subprocess.run([sys.executable, __file__, "--engine", engine, *same], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{engine}:\n{done.stderr[-2000:]}")
            found[engine].append(json.loads(done.stdout.splitlines()[-1])["tokens_a_cpu_second"])
    packed = found["vllm own"] if "vllm own" in found else next(iter(found.values()))
    for engine, rates in found.items():
        ratios = [rate / other for rate, other in zip(rates, packed)]
        print(f"{engine:12} {statistics.median(rates):6.0f} tokens a CPU s, x {statistics.median(ratios):.2f} {rates}")


def measure(engine: str, folder: Path) -> dict:
    from memory import lora
    from ppo_step import plain_context, prompts

    from align.roles.placement import Placement
    from align.roles.specs import Actor
    from align.roles.tokenizer import load_tokenizer
    from align.rollout.hf import HFRollout
    from align.rollout.vllm.rollout import VLLMRollout
    from align.types import Sampling

    path = str(folder / "policy")
    roles = Placement(plain_context(), Actor(path, "auto", 1e-5, lora("CAUSAL_LM"), None)).roles(8)
    tokenizer = load_tokenizer(path, "path")
    if engine == "hf":
        rollout = HFRollout(tokenizer.pad_token_id)
    else:
        rollout = VLLMRollout(path, roles.actor, 128, 32, 192, share_weights=engine == "vllm shared")
    rollout.attach(roles.actor)
    rows = prompts(folder.parent)
    for step in range(2):
        ids = [row.ids for row in rows[32 * step : 32 * step + 32]]
        before = time.process_time()
        generation = rollout.generate(ids, list(range(32)), Sampling(1.0, 64, (tokenizer.eos_token_id,)))
        seconds = time.process_time() - before
    rollout.close()
    return {"tokens_a_cpu_second": round(int(generation.mask_BT.sum()) / seconds, 1)}


if __name__ == "__main__":
    main()
