"""What the stage `preferences` is given: the rollout engine of a policy that does not train, and a judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from align import config
from align.nodes import as_dataclass, call, target_of
from align.rewarding import MODEL_REWARD, check_reward, check_scoring

HOW_ASKED = {"url", "timeout", "retries", "headers", "concurrency", "batch_size", "max_unread"}
"""Settings of a judge that change no score."""

if TYPE_CHECKING:
    from align.build import Build
    from align.report.report import StageReport


def answering(build: Build) -> dict[str, Any]:
    """Arguments of the stage beside its options, seed and device."""
    cfg = build.cfg
    judge = cfg.preferences.judge

    def make_judge(inputs: dict[str, str], out: Path, report: StageReport, tokenizer: Any) -> Any:
        from align.rewards.parts import check_reachable
        from align.roles.seating import Setting

        check_reachable(check_reward(judge, "preferences.judge"))
        setting = Setting(
            device=build.device(), dtype=build.dtype(), engine=build.engine, out=out, linear=build.linear,
            tell=report.say,
        )  # fmt: skip
        return build.reward(judge, inputs, setting, tokenizer, key="preferences.judge")

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
        "judge": {
            key: value for key, value in leaves(judge, "preferences.judge") if HOW_ASKED.isdisjoint(key.split("."))
        },
        "check_judge": lambda: check_scoring(judge, "preferences.judge", cfg.preferences.data, "preferences", cfg.seed),
        "make_judge": make_judge,
        "make_engine": make_engine,
    }


def leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The values of a node, each by its whole key; a list is a value."""
    if OmegaConf.is_dict(node):
        for name, inner in node.items():
            yield from leaves(inner, f"{key}.{name}")
    else:
        yield key, OmegaConf.to_container(node) if OmegaConf.is_list(node) else node


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
