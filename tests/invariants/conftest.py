"""PPO on tiny random models in every seating, and one reference run of each."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from peft import LoraConfig
from runs import RATE, Even, Run, play
from transformers import GPT2Config, GPT2LMHeadModel

from align.advantages.gae import GAE
from align.engine.plain import PlainEngine
from align.ppo.options import PPOOptions
from align.ppo.rollouts import as_rows
from align.ppo.step import PPO
from align.roles.placement import Placement, RunContext
from align.roles.specs import Actor, Critic, Reference
from align.rollout.hf import HFRollout
from align.types import Sampling

PROMPTS = [
    "a red kite", "seven old sailors count", "rain", "over the quiet harbour they sing of ropes",
    "count", "a kite flies over the old harbour", "sailors sing", "the quiet rain",
]  # fmt: skip


@pytest.fixture(scope="session")
def rows(tokenizer) -> list:
    return as_rows([{"prompt": prompt} for prompt in PROMPTS], tokenizer)


@pytest.fixture(scope="session")
def absolute(tokenizer, tmp_path_factory) -> str:
    """The folder of a random GPT-2, which learns a vector for each position; the Llama sees distances alone."""
    torch.manual_seed(0)
    settings = {"vocab_size": len(tokenizer), "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 2}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    folder = tmp_path_factory.mktemp("absolute")
    GPT2LMHeadModel(GPT2Config(**settings, **ends, initializer_range=0.15)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def make(base, tokenizer, tmp_path_factory) -> Callable[..., PPO]:
    """make(setup of runs.SETUPS, reference, checkpointing, tokens, stop_ids, path, **options of PPOOptions) -> PPO"""

    def engine(module, rates, max_grad_norm, zero):
        return PlainEngine(module, rates, max_grad_norm)

    def build(
        setup: str = "own",
        reference: str = "auto",
        checkpointing: bool = False,
        tokens: int | None = None,
        stop_ids: tuple[int, ...] | None = None,
        max_new_tokens: int = 12,
        path: str = base,
        reward=None,
        **options,
    ) -> PPO:
        torch.manual_seed(0)
        chosen = PPOOptions(**{"batch_size": 8, "micro_batch_size": 8, **options})
        context = RunContext(
            torch.device("cpu"), torch.float32, engine, tmp_path_factory.mktemp("run"),
            max_grad_norm=chosen.max_grad_norm, gradient_checkpointing=checkpointing,
        )  # fmt: skip
        full = setup.startswith("full")
        lora = None if full else LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        placement = Placement(context, Actor(path, "auto", RATE, lora, None))
        Reference(reference, None).place(placement)
        kind = {"full": "own", "full_head": "head"}.get(setup, setup)
        Critic(path, "auto", RATE, lora, None, kind).place(placement)
        # a sixth of the vocabulary ends an answer: answers of 1 to 12 tokens
        stop_ids = stop_ids or (tokenizer.eos_token_id, *range(0, len(tokenizer), 6))
        return PPO(
            placement.roles(chosen.micro_batch_size, tokens), HFRollout(tokenizer.pad_token_id), reward or Even(),
            GAE(chosen.gamma, chosen.lam), tokenizer, Sampling(1.0, max_new_tokens, stop_ids), chosen,
        )  # fmt: skip

    return build


@pytest.fixture(scope="session")
def reference_run(make, rows) -> Callable[[str], Run]:
    """reference_run(setup): two steps in whole minibatches, each run once a session."""

    @cache
    def of(setup: str) -> Run:
        run = play(make(setup), rows)
        lengths = run.rollouts[0].response_mask_BT.sum(1).tolist()
        assert len(set(lengths)) > 3, "uneven answers, or nothing is tested"
        return run

    return of
