"""A whole PPO loop on tiny random models, as `align.build.runtime` wires it, with transformers' generation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from align.advantages.gae import GAE
from align.advantages.rloo import RLOO
from align.engine.plain import PlainEngine
from align.ppo.options import PPOOptions
from align.ppo.rollouts import as_rows
from align.ppo.step import PPO
from align.roles.placement import Placement, RunContext
from align.roles.specs import Actor, Critic, Reference
from align.rollout.hf import HFRollout
from align.types import Sampling, Scored

PROMPTS = ["a red kite", "seven old sailors count", "rain", "over the quiet harbour they sing of ropes"]


class Length:
    """A reward that any policy can learn: one tenth of a point a token, by the tokens themselves."""

    wants = frozenset()

    def __call__(self, rollout, texts, state):
        score_B = rollout.response_mask_BT.sum(1).float() / 10
        return Scored(score_B, {"length": score_B})


@pytest.fixture
def lora() -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    def engine(module, rates, max_grad_norm, zero):
        return PlainEngine(module, rates, max_grad_norm)

    return RunContext(torch.device("cpu"), torch.float32, engine, tmp_path)


@pytest.fixture
def make_ppo(base: str, lora: LoraConfig, context: RunContext, tokenizer) -> Callable[..., PPO]:
    """make_ppo(path, peft, critic, critic_path, reward, learning_rate, samples, …, **options of PPOOptions)

    `rollout` makes an engine for the actor.
    """

    def make(
        path: str = base,
        peft: Any = lora,
        critic: bool | str = True,
        critic_path: str | None = None,
        reward: Any = None,
        learning_rate: float = 1e-3,
        samples: int = 1,
        stop_ids: tuple[int, ...] | None = None,
        temperature: float = 1.0,
        rollout: Callable[..., Any] | None = None,
        **options: Any,
    ) -> PPO:
        torch.manual_seed(0)  # LoRA's own start is random
        chosen = PPOOptions(**{"batch_size": 8, "micro_batch_size": 4, "kl_coef": 0.05, **options})
        placement = Placement(context, Actor(path, "auto", learning_rate, peft, None))
        Reference("auto", None).place(placement)
        if critic:
            kind = critic if isinstance(critic, str) else "own"
            Critic(critic_path or path, "auto", learning_rate, peft, None, kind).place(placement)
        roles = placement.roles(chosen.micro_batch_size)
        sampling = Sampling(temperature, 12, stop_ids or (tokenizer.eos_token_id,))
        advantage = GAE(chosen.gamma, chosen.lam) if critic else RLOO()
        engine = rollout(roles.actor) if rollout else HFRollout(tokenizer.pad_token_id, 64)
        return PPO(roles, engine, reward or Length(), advantage, tokenizer, sampling, chosen, samples)

    return make


@pytest.fixture
def rows(tokenizer) -> list:
    return as_rows([{"prompt": prompt} for prompt in PROMPTS * 2], tokenizer)
