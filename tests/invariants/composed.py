"""A PPO loop as the command line builds it, from words."""

from __future__ import annotations

from pathlib import Path

import torch
from command_line import write_rows

import align.cli.main  # noqa: F401 - registers the search path
from align.build.checks import check_ppo
from align.build.ppo import assemble
from align.build.runtime import Runtime
from align.cli.compose import composed, plan_of
from align.ppo.step import PPO
from align.report.report import Report
from align.roles.tokenizer import load_tokenizer

WORDS = (
    "stages=ppo reward=fn reward.fn=composed.even rollout=hf rollout.max_new_tokens=12 "
    "ppo.max_prompt_tokens=40 ppo.batch_size=8 ppo.micro_batch_size=8 actor.learning_rate=3e-3 cpu_linear=torch"
)


def even(completion_ids, **kwargs) -> list[float]:
    """Share of even token ids."""
    return [sum(i % 2 == 0 for i in ids) / max(len(ids), 1) for ids in completion_ids]


def assembled(base: str, folder: Path, *words: str) -> PPO:
    """The loop that `align stages=ppo actor.path=BASE …` runs."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "prompts.jsonl", [{"prompt": "a red kite"}, {"prompt": "rain"}])
    overrides = [*WORDS.split(), f"actor.path={base}", f"ppo.data.path={folder / 'prompts.jsonl'}", *words]
    plan = plan_of(composed(overrides)[0])
    stage, runtime = plan.stage("ppo"), Runtime(plan)
    check_ppo(stage, plan, runtime.device, stage.known())
    torch.manual_seed(0)  # LoRA's own start is random
    with Report().stage("ppo", folder) as report:
        return assemble(stage, runtime, stage.known(), folder, report, load_tokenizer(base, "actor.path"))
