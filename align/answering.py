"""What the stage `preferences` is given: the rollout engine of a policy that does not train, and a judge; what a
watch over PPO is given: a judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from align import config
from align.checks import absent
from align.nodes import as_dataclass, call, plain_values, target_of
from align.rewarding import MODEL_REWARD, check_reward, check_scoring

if TYPE_CHECKING:
    from align.build import Build
    from align.report.report import StageReport


def answering(build: Build) -> dict[str, Any]:
    """Arguments of the stage beside its options, seed and device."""
    cfg, key = build.cfg, "preferences.judge"
    judge = cfg.preferences.judge

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
        "check_judge": lambda: check_scoring(judge, key, cfg.preferences.data, "preferences", cfg.seed),
        "make_judge": judge_maker(build, judge, key),
        "make_engine": make_engine,
    }


def judge_maker(build: Build, judge: DictConfig, key: str) -> Callable[..., Any]:
    """What makes the reward at `key` apart from all roles, of a stage's inputs, folder, report and tokenizer."""

    def make_judge(inputs: dict[str, str], out: Path, report: StageReport, tokenizer: Any) -> Any:
        from align.rewards.parts import check_reachable
        from align.roles.seating import Setting

        check_reachable(check_reward(judge, key))
        setting = Setting(
            device=build.device(), dtype=build.dtype(), engine=build.engine, out=out, linear=build.linear,
            tell=report.say,
        )  # fmt: skip
        return build.reward(judge, inputs, setting, tokenizer, key=key)

    return make_judge


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
    """The judge is a reward model that this run makes."""
    judge = build.cfg.preferences.get("judge") if "preferences" in build.stages else None
    return judge is not None and judge._target_ == MODEL_REWARD and judge.path == "auto"
