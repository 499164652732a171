"""How a reward model judges pairs, and what it scores samples of a policy.

Shapes: B rows, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align.data.encode import answer_ids, prompt_ids, shared_length
from align.engine.cpu_linear import CpuLinear
from align.roles.alone import load_policy
from align.roles.batching import by_length
from align.roles.modules import ScoreModule
from align.roles.tokenizer import stop_ids
from align.rollout.hf import HFRollout
from align.stages.reward_report import Judged
from align.stages.rollouts import Row, write
from align.types import Rollout, Sampling

BATCH = 64


@dataclass
class Comparison:
    accuracy: float
    """Share of pairs in which the chosen answer scores higher; a tie counts half."""
    margin: float
    """Mean of chosen minus rejected score."""


def compare(
    module: ScoreModule, pairs: list[dict], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Comparison:
    """How often, and by how much, the chosen answer of a pair scores higher."""
    judged = judge(module, pairs, tokenizer, device)
    return Comparison(float(judged.right_B.mean()), float(judged.margin_B.mean()))


def judge(module: ScoreModule, pairs: list[dict], tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Judged:
    """Scores of both sides of every pair, and how many tokens each answer has; on the CPU."""
    sides = [answer_ids(pairs, side, tokenizer) for side in ("chosen", "rejected")]
    prompts = [prompt_ids(row["prompt"], tokenizer) if "prompt" in row else [] for row in pairs]
    lengths = [
        torch.tensor([len(ids) - shared_length(prompt, ids) for prompt, ids in zip(prompts, side, strict=True)])
        for side in sides
    ]
    return Judged(*(score_ids(module, side, device) for side in sides), *lengths)


@torch.no_grad()
def score_ids(module: ScoreModule, rows: list[list[int]], device: torch.device) -> Tensor:
    """score_B of token sequences, on the CPU."""
    length_B = torch.tensor([len(row) for row in rows])
    score_B = torch.zeros(len(rows))
    for part in by_length(length_B, BATCH):
        width = int(length_B[part].max())
        ids_BN = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in part.tolist()], device=device)
        mask_BN = torch.arange(width, device=device)[None] < length_B[part].to(device)[:, None]
        score_B[part] = module(ids_BN, mask_BN).cpu()
    return score_B


def swapped(pairs: list[dict]) -> list[dict]:
    """Pairs of each row's chosen answer and that of the next row with another prompt."""
    rows = [row for row in pairs if "prompt" in row]
    out = []
    for i, row in enumerate(rows):
        others = (rows[(i + k) % len(rows)] for k in range(1, len(rows)))
        other = next((o for o in others if o["prompt"] != row["prompt"] and o["chosen"] != row["chosen"]), None)
        if other:
            out.append({"prompt": row["prompt"], "chosen": row["chosen"], "rejected": other["chosen"]})
    return out


def samples_of(
    path: str,
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    seed: int,
    device: torch.device,
    linear: CpuLinear,
) -> Rollout:
    """One sample a row, written by the policy at `path` at temperature 1."""
    policy = load_policy(path, "rm.path", device, linear)
    engine = HFRollout(tokenizer.pad_token_id, BATCH)
    engine.attach(policy)
    sampling = Sampling(1.0, max_new_tokens, stop_ids(str(Path(path)), tokenizer))
    return write(engine, rows, sampling, seed=seed, purpose="norm").to(device)
