"""A run in a few lines, for its start: each stage with what it takes and how it trains. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from align.config.values import Plug
from align.plan.plan import Input, RunPlan, StagePlan
from align.plan.rewards import every_reward
from align.plan.spec import AUTO, POLICY
from align.words import counted

ROLES = ("actor", "critic")
ALSO = ("advantage", "policy_loss", "rollout", "watch")
"""Sections that a stage's line names by their choice."""


def outline(plan: RunPlan, choices: Mapping[str, str | None]) -> dict[str, str]:
    """A line for each stage by its name; `choices` are those of every group, by what is typed (peft@sft.peft)."""
    chosen = {group.partition("@")[2] or group: choice for group, choice in choices.items()}
    return {stage.name: "; ".join(filter(None, _parts(stage, chosen))) for stage in plan.stages}


def _parts(stage: StagePlan, chosen: Mapping[str, str | None]) -> Iterator[str]:
    kind, options, sections = stage.spec.name, stage.options, stage.sections
    trains = stage.spec.makes == POLICY
    for one in stage.inputs:
        peft = chosen.get(f"{one.name}.peft") if one.name in ROLES and trains else None
        yield _input(one) + (f", peft={peft}" if peft else "")
    if hasattr(options, "peft"):
        yield f"peft={chosen.get(f'{kind}.peft')}"
    if sections.reference and trains and not stage.input("reference"):
        yield "reference: the actor as it starts"
    if sections.reward:
        yield _reward(sections.reward, chosen)
    if judge := getattr(options, "judge", None):
        yield _reward(judge, chosen) if isinstance(judge, Plug) else f"judge={judge}"
    if trains:
        yield " ".join(f"{name}={chosen[name]}" for name in ALSO if getattr(sections, name) and chosen.get(name))
    if isinstance(getattr(options, "data", None), Plug):
        path = options.data.get("path")
        yield f"data={chosen.get(f'{kind}.data')}{'' if path in (None, AUTO) else f' {_listed(path)}'}"
    steps = getattr(options, "steps", None) or (options.args.get("max_steps") if hasattr(options, "args") else None)
    if hasattr(options, "batch_size") and steps and steps > 0:
        yield f"{counted(steps, 'step')} of {options.batch_size}"
    elif hasattr(options, "batch_size") and hasattr(options, "epochs"):
        yield f"{options.epochs:g} x the data, in batches of {options.batch_size}"


def _input(one: Input) -> str:
    origin = one.source or one.path
    return f"from {origin}" if one.name == "path" else origin if one.name == origin else f"{one.name} from {origin}"


def _reward(reward: Plug, chosen: Mapping[str, str | None]) -> str:
    """The choice of a reward, and of those inside it, each by its name; a function by its own."""
    words = []
    for one in every_reward(reward):
        name, choice = one.key.rpartition(".")[2], chosen.get(one.key) or one.target
        words.append(" ".join(map(str, filter(None, [f"{name}={choice}", one.get("fn")]))))
    return f"{words[0]} of {', '.join(words[1:])}" if words[1:] else words[0]


def _listed(path: Any) -> str:
    return ", ".join(map(str, path)) if isinstance(path, tuple) else str(path)
