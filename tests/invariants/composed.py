"""A PPO loop as the command line builds it, from words."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

import align.cli.main  # noqa: F401 - registers the schemas
from align.build import Build
from align.cli.compose import check_composition
from align.ppo.step import PPO
from align.report.report import Report
from align.roles.tokenizer import load_tokenizer

WORDS = (
    "stages=ppo ppo.data.path=prompts.jsonl reward=fn reward.fn=composed.even rollout=hf rollout.max_new_tokens=12 "
    "ppo.max_prompt_tokens=40 ppo.batch_size=8 ppo.micro_batch_size=8 actor.learning_rate=3e-3 cpu_linear=torch"
)


def even(completion_ids, **kwargs) -> list[float]:
    """Share of even token ids."""
    return [sum(i % 2 == 0 for i in ids) / max(len(ids), 1) for ids in completion_ids]


def assembled(base: str, folder: Path, *words: str) -> PPO:
    """The loop that `align stages=ppo actor.path=BASE …` runs."""
    overrides = [*WORDS.split(), f"actor.path={base}", *words]
    GlobalHydra.instance().clear()
    with check_composition(overrides), initialize_config_module("align.conf", version_base="1.3"):
        build = Build(compose("config", overrides))
    inputs = build.sources().inputs("ppo", {})
    build.check_roles(inputs)
    torch.manual_seed(0)  # LoRA's own start is random
    folder.mkdir(exist_ok=True)
    with Report().stage("ppo", folder) as report:
        return build.ppo(inputs, folder, report, load_tokenizer(base, "actor.path"))
