"""Stages in a row from one configuration: what each takes from the ones before, checks first, then the work.

No torch at import: what can be known early is known before anything loads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from align.errors import AlignError

STAGES = ("pretrain", "sft", "rm", "ppo", "evaluate")


@dataclass
class Sources:
    """Where inputs come from when they are `auto`: stages of this run, else a path given elsewhere."""

    model: str | None
    paths: dict[str, str]
    """Explicit paths by role: sft, rm, actor, critic, reference, reward; `auto` where left open."""
    needs_critic: bool
    learned_reward: bool
    runs: str = "runs/NAME/latest"
    stages: list[str] = field(default_factory=list)

    def inputs(self, stage: str, made: dict[str, str]) -> dict[str, str]:
        """Inputs of a stage by name. What a stage of this run is still to make is left out.

        Raises AlignError where an input has no source at all, with what to write.
        """
        found: dict[str, str | None] = {}
        if stage == "sft":
            found["path"] = self._find("sft", made, "pretrain")
        elif stage == "rm":
            found["path"] = self._find("rm", made, "sft", "pretrain")
        elif stage == "ppo":
            found["actor"] = self._find("actor", made, "sft", "pretrain")
            if self.needs_critic:
                found["critic"] = self._find("critic", made, "rm", default=found["actor"])
            if self.learned_reward:
                found["reward"] = self._find("reward", made, "rm", model=False)
            if self.paths["reference"] != "auto":
                found["reference"] = self.paths["reference"]
        elif stage == "evaluate":
            found |= self._policies(made)
        return {name: path for name, path in found.items() if path is not None}

    def _policies(self, made: dict[str, str]) -> dict[str, str | None]:
        """base, sft and ppo policies and the reward model, as far as this run or a path names them."""
        explicit = {role: path for role, path in self.paths.items() if path != "auto"}
        if "ppo" not in self.stages and "sft" not in self.stages:
            policies = {"ppo": explicit.get("actor", self.model), "sft": explicit.get("reference")}
            if policies["ppo"] is None:
                raise AlignError(f"evaluate needs a policy: write actor.path={self.runs}/ppo")
            return {**policies, "rm": explicit.get("reward")}
        base = made.get("pretrain") or (None if "pretrain" in self.stages else explicit.get("sft", self.model))
        sft = made.get("sft") or (None if "sft" in self.stages else explicit.get("actor", self.model))
        return {
            "base": base if base != sft else None,
            "sft": sft,
            "ppo": made.get("ppo"),
            "rm": made.get("rm") or explicit.get("reward"),
        }

    def _find(
        self, role: str, made: dict[str, str], *stages: str, model: bool = True, default: str | None = None
    ) -> str | None:
        if self.paths[role] != "auto":
            return self.paths[role]
        for stage in stages:
            if stage in self.stages:
                return made.get(stage)
        if default is not None or role == "critic":
            return default
        if model and self.model:
            return self.model
        last = stages[0] if stages else "sft"
        instead = f", or model=FOLDER or a hub name, or {stages[-1]} among the stages" if model else ""
        raise AlignError(
            f"{role}.path=auto: no stage of this run makes one (stages={self.stages})\n"
            f"  write {role}.path={self.runs}/{last}{instead or f', or {last} among the stages'}"
        )


def order(stages: list[str], judged: bool) -> list[str]:
    """The stages in the order in which they run; evaluation closes a run that has a policy to judge."""
    chosen = [stage for stage in STAGES if stage in stages]
    if "evaluate" not in chosen and ("ppo" in chosen or (judged and "sft" in chosen)):
        chosen.append("evaluate")
    return chosen


def new_folder(root: Path, name: str) -> Path:
    """runs/NAME/TIME, made now and pointed to by runs/NAME/latest; a second run in one second gets another."""
    home = root / name
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in range(1000):
        folder = home / (stamp if number == 0 else f"{stamp}_{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
    fresh = home / f".latest-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.name)
    fresh.replace(home / "latest")
    return folder


def run(
    stages: list[str],
    sources: Sources,
    make_stage: Callable[[str], Any],
    make_folder: Callable[[], Path],
    make_report: Callable[[Path], Any],
    config_yaml: str,
) -> dict[str, Any]:
    """Checks every stage, makes the run's folder, runs the stages in turn; returns the summary."""
    made: dict[str, str] = {}
    steps = {name: make_stage(name) for name in stages}
    for name, stage in steps.items():
        stage.check(sources.inputs(name, made))
    folder = make_folder()
    report = make_report(folder)
    cards: dict[str, dict] = {}
    try:
        for name, stage in steps.items():
            out = folder / name
            out.mkdir()
            (out / "config.yaml").write_text(config_yaml)
            with report.stage(name, out) as stage_report:
                stage.run(sources.inputs(name, made), out, stage_report)
                stage_report.write_card()
            made[name] = str(out.resolve())
            cards[name] = stage_report.card
    finally:
        report.close()
    summary = summarise(cards, report.seconds, folder)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report.finish(summary)
    return summary


def summarise(cards: dict[str, dict], seconds: dict[str, float], folder: Path) -> dict[str, Any]:
    """The figures of a run in one place: summary.json."""
    evaluated = cards.get("evaluate", {})
    policies = evaluated.get("policies", {})
    rm = cards.get("rm", {})
    return {
        "run": str(folder),
        "true_score": {name: figures["true_score"] for name, figures in policies.items() if "true_score" in figures},
        "reward_accuracy": evaluated.get("reward_accuracy", rm.get("eval_accuracy")),
        "swap_accuracy": evaluated.get("swap_accuracy", rm.get("swap_accuracy")),
        "kl": policies.get("ppo", {}).get("kl"),
        "samples": evaluated.get("samples"),
        "rollout_engine": cards.get("ppo", {}).get("rollout_engine"),
        "policies": policies,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
