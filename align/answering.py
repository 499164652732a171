"""What the stage `preferences` is given: the rollout engine of a policy that does not train, and a judge; what rm and
a watch over PPO are given: a judge; what `evaluate` is given: the run's own reward."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from align import config
from align.checks import absent
from align.config.leaves import leaves
from align.longest_prompt import longest_prompt
from align.members import MODEL_REWARD, learned
from align.nodes import as_dataclass, call, plain_values, target_of
from align.preflight import check_judge
from align.rewarding import check_reward, make_reward, reward_nodes

if TYPE_CHECKING:
    from align.build import Build
    from align.report.report import StageReport

HOW_ASKED = {"url", "timeout", "retries", "headers", "concurrency", "batch_size", "max_unread"}
"""Settings of a judge that change no score."""


def answering(build: Build) -> dict[str, Any]:
    """Arguments of the stage beside its options, seed and device."""
    cfg = build.cfg
    settings = leaves(OmegaConf.to_container(cfg.preferences.judge, resolve=True), "preferences.judge.")
    scores_by = {key: one for key, one in settings if one != {} and HOW_ASKED.isdisjoint(key.split("."))}

    def make_engine(path: str, tokenizer: Any, longest: int, report: StageReport) -> Any:
        from align.roles.alone import load_policy
        from align.roles.folder import base_home

        policy = load_policy(path, "preferences.policies", build.device(), build.linear)
        options = as_dataclass(cfg.rollout, config.Rollout)
        engine = target_of(cfg.rollout, "rollout")(options, policy, base_home(path), tokenizer, longest, report.say)
        engine.attach(policy)
        return engine

    return {
        "data": call(cfg.preferences.data, "preferences.data"),
        "sampling": (cfg.rollout.temperature, cfg.rollout.max_new_tokens),
        "judge": lambda: scores_by | code_of(scores_by),
        "make_engine": make_engine,
        "longest_prompt": partial(longest_prompt, build, "preferences"),
        **judging(build, "preferences"),
    }


def code_of(settings: dict[str, Any]) -> dict[str, str]:
    """A hash of each file with a function that a judge calls, by its name; of functions that are imported."""
    named = [str(value).rpartition(".")[0] for key, value in settings.items() if key.endswith((".fn", ".fn._target_"))]
    files = {getattr(sys.modules.get(module), "__file__", None) for module in named} - {None}
    return {Path(file).name: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files}


def judging(build: Build, stage: str) -> dict[str, Any]:
    """Arguments of a stage for its judge; none without one."""
    key, judge = f"{stage}.judge", build.cfg[stage].judge
    if judge is None:
        return {}
    return {
        "check_judge": partial(check_judge, build, judge, key, stage), "make_judge": judge_maker(build, judge, key),
    }  # fmt: skip


def judge_maker(build: Build, judge: DictConfig, key: str) -> Callable[..., Any]:
    """What makes the reward at `key` apart from all roles, of a stage's inputs, folder, report and tokenizer."""

    def make_judge(inputs: dict[str, str], out: Path, report: StageReport, tokenizer: Any) -> Any:
        from align.rewards.parts import check_reachable
        from align.roles.placement import Setting

        check_reachable(check_reward(judge, key))
        setting = Setting(
            device=build.device(), dtype=build.dtype(), engine=build.engine, out=out, linear=build.linear,
            tell=report.say,
        )  # fmt: skip
        return make_reward(build, judge, inputs, setting, tokenizer, key=key)

    return make_judge


def own_reward(build: Build) -> Callable[..., Any]:
    """What makes the run's reward for `evaluate`: None where it is one reward model, whose raw score is told anyway,
    and where no stage has made the one that it asks."""
    node = build.cfg.reward
    make = judge_maker(build, node, "reward")
    unmade = any(learned(one) and one.path == "auto" for _, one in reward_nodes(node))

    def make_own(inputs: dict[str, str], *given: Any) -> Any:
        if node._target_ == MODEL_REWARD or (unmade and "rm" not in inputs):
            return None
        return make({**inputs, "reward": inputs.get("rm")}, *given)

    return make_own


def watching(build: Build) -> dict[str, Any]:
    """Arguments of the stage ppo for its watch; none without one."""
    node = build.cfg.watch
    if absent(node):
        return {}
    make_judge = judge_maker(build, node.judge, "watch.judge")
    return {"make_watch": lambda *given: target_of(node, "watch")(make_judge(*given), **plain_values(node))}


def policies(build: Build) -> list[str]:
    """Who is named to answer; [] for this run's newest policy."""
    if "preferences" not in build.stages:
        return []
    named = build.cfg.preferences.policies
    named = list(named) if OmegaConf.is_list(named) else [named]
    return [] if named == ["auto"] else [build.real.get(str(path), str(path)) for path in named]


def learned_judge(build: Build) -> bool:
    """The judge asks a reward model that this run makes."""
    if "preferences" not in build.stages:
        return False
    nodes = [node for _, node in reward_nodes(build.cfg.preferences.judge, "preferences.judge")]
    return any(learned(node) and node.path == "auto" for node in nodes)
