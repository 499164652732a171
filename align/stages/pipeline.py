"""Stages in a row from one configuration: what each takes from the ones before, checks first, then the work.

No torch at import: what can be known early is known before anything loads.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from align.errors import AlignError
from align.stages.fingerprint import fingerprints

STAGES = ("pretrain", "sft", "rm", "preferences", "best_of", "dpo", "kto", "ppo", "evaluate")
POLICIES = ("ppo", "kto", "dpo", "best_of", "sft", "pretrain")
"""Stages that leave a policy, the last first."""

LATER = ("best_of", "dpo", "kto", "ppo")
"""Stages whose policy starts from the fine-tuned one."""
ENDED = "ended.json"
"""In a run's folder beside no summary.json: the stage in which it ended, how (failed, stopped or pruned) and why."""


@dataclass
class Sources:
    """Where inputs come from when they are `auto`: stages of this run, else a path given elsewhere."""

    model: str | None
    paths: dict[str, str]
    """Explicit paths by role: sft, best_of, rm, actor, critic, reference, reward; `auto` where left open."""
    needs_critic: bool
    learned_reward: bool
    runs: str = "runs/NAME/latest"
    reward_key: str = "reward.path"
    """The key of the reward model's path, which in a sum of rewards is a term's."""
    further_rewards: list[str] = field(default_factory=list)
    """Reward models that are named beside the first."""
    stages: list[str] = field(default_factory=list)
    sampled: tuple[str, ...] = ()
    """Stages whose data are what this run's stage `preferences` writes."""
    policies: list[str] = field(default_factory=list)
    """Who answers in `preferences`, where they are named."""
    learned_judge: bool = False
    """The judge of `preferences` is this run's reward model."""
    real: dict[str, str] = field(default_factory=dict)
    """Where paths lie before the run's folder is made: `runs/NAME/latest/sft` is another place afterwards."""

    def inputs(self, stage: str, made: dict[str, str]) -> dict[str, str]:
        """Inputs of a stage by name. What a stage of this run is still to make is left out.

        Raises AlignError where an input has no source at all, with what to write.
        """
        found: dict[str, str | None] = {}
        if stage == "sft":
            found["path"] = self._find("sft", made, "pretrain")
        elif stage == "rm":
            found["path"] = self._find("rm", made, "sft", "pretrain")
        elif stage == "best_of":
            found["path"] = self._find("best_of", made, *before(stage))
        elif stage in ("dpo", "kto"):
            found |= self._actor(stage, made)
        elif stage == "preferences":
            found |= {f"policy_{i}": path for i, path in enumerate(self.policies, start=1)}
            if not self.policies:
                found["actor"] = self._find("actor", made, *before(stage))
            if self.learned_judge:
                found["reward"] = self._find("reward", made, "rm", model=False)
        elif stage == "ppo":
            found |= self._actor(stage, made)
            if self.needs_critic:
                found["critic"] = self._find("critic", made, "rm", default=found["actor"])
            if self.learned_reward:
                found["reward"] = self._find("reward", made, "rm", model=False)
            found |= {f"reward_{i}": path for i, path in enumerate(self.further_rewards, start=2)}
        elif stage == "evaluate":
            found |= self._policies(made)
            found["samples"] = made.get("preferences") if "rm" in self.sampled else None
        if stage in self.sampled:
            found["samples"] = self._samples(stage, made)
        return {name: path for name, path in found.items() if path is not None}

    def _actor(self, stage: str, made: dict[str, str]) -> dict[str, str | None]:
        """What the actor starts from, and the reference where one is named."""
        named = {"reference": self.paths["reference"]} if self.paths["reference"] != "auto" else {}
        return {"actor": self._find("actor", made, *before(stage)), **named}

    def _samples(self, stage: str, made: dict[str, str]) -> str | None:
        if "preferences" not in self.stages:
            raise AlignError(
                f"{stage}.data.path is auto, and no stage of this run samples answers\n  write {stage}.data.path="
                f"{self.runs}/preferences (of an earlier run), or stages=[preferences,{','.join(self.stages)}]"
            )
        return made.get("preferences")

    def _policies(self, made: dict[str, str]) -> dict[str, str | None]:
        """The policies and the reward model, as far as a stage of this run or a path names them."""
        explicit = {role: path for role, path in self.paths.items() if path != "auto"}
        reward = made.get("rm") or explicit.get("reward")
        if not {"sft", *LATER} & set(self.stages):
            policies = {"ppo": explicit.get("actor", self.model), "sft": explicit.get("reference")}
            if policies["ppo"] is None:
                raise AlignError(f"evaluate needs a policy: write actor.path={self.runs}/ppo")
            return {**policies, "rm": reward}
        base = made.get("pretrain") or (None if "pretrain" in self.stages else explicit.get("sft", self.model))
        sft = made.get("sft") or (None if "sft" in self.stages else explicit.get("actor", self.model))
        return {
            "base": base if base != sft else None,
            "sft": sft,
            **{stage: made.get(stage) for stage in LATER},
            "rm": reward,
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
        key = self.reward_key if role == "reward" else f"{role}.path"
        usual = "sft" if "sft" in stages else stages[0]
        longer = ",".join([usual, *(stage for stage in self.stages if stage != "evaluate")])
        ways = ["model=FOLDER (or a hub name)"] if model else []
        ways += [f"{key}={self.runs}/{usual} (of an earlier run)", f"stages=[{longer}]"]
        ways += [] if model else ["another reward (reward=fn reward.fn=module.function)"]
        raise AlignError(
            f"{key} is auto, and no stage of this run makes what it needs\n"
            f"  write {', '.join(ways[:-1])}, or {ways[-1]}"
        )


def before(stage: str) -> list[str]:
    """Stages before this one that leave a policy, the last first."""
    return [one for one in POLICIES if STAGES.index(one) < STAGES.index(stage)]


def check_place(root: Path, name: str) -> None:
    """Raises AlignError if runs/NAME/TIME cannot be made; makes nothing."""
    home = root / name
    place = next(folder for folder in (home, *home.absolute().parents) if os.path.lexists(folder))
    if not place.is_dir():
        raise AlignError(f"runs={root}: {place} is a file, and runs go into folders\n  write runs=FOLDER or name=NAME")
    if not os.access(place, os.W_OK | os.X_OK):
        raise AlignError(f"runs={root}: nothing can be written into {place}\n  write runs=FOLDER, one of your own")
    latest = home / "latest"
    if latest.exists() and not latest.is_symlink():
        raise AlignError(f"{latest} is no link that align made, and would be replaced\n  move it, or write name=NAME")


def new_folder(root: Path, name: str) -> Path:
    """runs/NAME/TIME, made now and pointed to by runs/NAME/latest; a second run in one second gets another."""
    home = root / name
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        home.mkdir(parents=True, exist_ok=True)
        folder = next(folder for folder in _names(home, stamp) if _made(folder))
        fresh = home / f".latest-{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder.name)
        fresh.replace(home / "latest")
    except OSError as error:
        raise AlignError(f"runs={root}: no folder can be made there ({error})\n  write runs=FOLDER") from error
    return folder


def _names(home: Path, stamp: str) -> Iterator[Path]:
    yield home / stamp
    for number in itertools.count(1):
        yield home / f"{stamp}_{number}"


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def run(
    stages: list[str],
    sources: Sources,
    look: Callable[[], None],
    make_stage: Callable[[str], Any],
    home: tuple[Path, str],
    make_report: Callable[[Path], Any],
    config_yaml: str,
) -> dict[str, Any]:
    """Checks every stage, makes the run's folder, runs the stages in turn; returns the summary.

    `look` raises what can be told before a stage is made, which imports torch. `home` is the folder of all runs and the
    run's name.
    """
    check_place(*home)
    made: dict[str, str] = {}
    known = {name: sources.inputs(name, made) for name in stages}
    look()
    steps = {name: make_stage(name) for name in stages}
    for name, stage in steps.items():
        stage.check(known[name])
    from align.stages.later import check_later  # brings in torch, as the stages have by now

    check_later(steps, known)
    folder = new_folder(*home)
    report = make_report(folder)
    cards: dict[str, dict] = {}
    try:
        for name, stage in steps.items():
            out = folder / name
            out.mkdir()
            (out / "config.yaml").write_text(config_yaml)
            with end_told(folder, name), report.stage(name, out) as stage_report:
                inputs = {role: sources.real.get(path, path) for role, path in sources.inputs(name, made).items()}
                stage.run(inputs, out, stage_report)
                stage_report.write_card(hashes=fingerprints(inputs, stage_report.card.get("base")))
            made[name] = str(out.resolve())
            cards[name] = stage_report.card
    finally:
        report.close()
    summary = summarise(cards, report.seconds, folder)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report.finish(summary)
    return summary


@contextmanager
def end_told(folder: Path, stage: str) -> Iterator[None]:
    """Leaves ended.json in the run's folder if what is inside raises; a process that is killed leaves none."""
    try:
        yield
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        write_end(folder, stage, "failed", line if isinstance(error, AlignError) else f"{type(error).__name__}: {line}")
        raise
    except BaseException as error:  # Ctrl-C
        write_end(folder, stage, "stopped", type(error).__name__)
        raise


def write_end(folder: Path, stage: str, how: str, why: str) -> None:
    (folder / ENDED).write_text(json.dumps({"stage": stage, "how": how, "why": why}) + "\n")


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
