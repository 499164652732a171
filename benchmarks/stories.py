"""The work of learning.py: openings of stories, a rule that scores how they go on, and the settings of both sides.

Nothing heavy is imported, so that TRL's environment can use it, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

BATCH, TOKENS, EPOCHS = 32, 48, 4
"""Prompts a step, new tokens of each, passes over them; a pass is one minibatch in one micro-batch."""
RATE, KL_COEF, CLIP, VALUE_CLIP, GAMMA, LAM = 1e-4, 0.02, 0.2, 0.2, 1.0, 0.95
"""The learning rate, of policy and critic, falls linearly to 0."""
BETAS, EPSILON = (0.9, 0.95), 1e-5
"""AdamW's, without weight decay."""
MODEL = Path(os.environ.get("ALIGN_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data" / "stories260k"

KINDS = ["big", "small", "brave", "happy", "shy", "clever", "kind", "funny"]
WHO = ["dog", "cat", "bird", "bear", "fish", "girl", "boy", "frog", "mouse", "duck"]
NAMES = ["Tim", "Lily", "Max", "Mia", "Tom", "Anna", "Ben", "Sue", "Sam", "Lucy"]


def openings(seed: int, step: int) -> list[str]:
    """The prompts of a step."""
    every = list(itertools.product(KINDS, WHO, NAMES))
    drawn = random.Random(f"{seed}/{step}").sample(every, BATCH)
    return [f"Once upon a time, there was a {kind} {who} named {name}." for kind, who, name in drawn]


def rule(completions: list[str], **more: Any) -> list[float]:
    """Letters "s" in ten characters."""
    return [10 * text.lower().count("s") / max(len(text), 1) for text in completions]


def arguments(about: str) -> argparse.Namespace:
    """The command line of one side's script, for one run."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--completions", help="a file: align's script writes token ids there, TRL's takes them")
    parser.add_argument("--json", help="a file for the figures")
    args = parser.parse_args()
    check_model(args.model)
    return args


def check_model(path: str) -> None:
    if not (Path(path) / "config.json").exists():
        raise SystemExit(
            f"--model={path}: no model there\n"
            "  use --model FOLDER: a small language model that writes stories, such as llama2.c's stories260K "
            "in transformers' format"
        )


def figures(metrics: dict[str, float], seconds: float) -> dict[str, float]:
    """What is kept of a step: both sides report under the same names. KL is k1, summed over a completion's tokens."""
    return {
        "score": metrics["objective/scores"], "kl": metrics["objective/kl"], "cpu": seconds,
        "policy_loss": metrics["loss/policy_avg"], "value_loss": metrics["loss/value_avg"],
        "approx_kl": metrics["policy/approxkl_avg"],
    }  # fmt: skip


def report(args: argparse.Namespace, side: str, steps: list[dict[str, float]]) -> None:
    found = {"side": side, "seed": args.seed, "steps": steps}
    last = steps[-1]
    print(side, args.seed, {name: round(value, 4) for name, value in last.items()}, flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(found) + "\n")
