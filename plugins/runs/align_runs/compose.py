"""Settings to a configuration, checked as a run would check it, without a model. No torch.

Every name of align's command line, composition and checks that this package uses is imported here, and nowhere else.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from align.build.first_checks import check_first
from align.build.plugs import check_names, target_of
from align.cli.choices import GLOBAL
from align.cli.compose import composed, plan_of
from align.cli.errors import message_of
from align.cli.main import run
from align.cli.plugins import listed_keys
from align.cli.plugins import plugs as listed
from align.cli.schema import ROOT, all_settings, register, stage_specs
from align.config import section_of
from align.config.fields import types_of
from align.config.values import NONE, TARGET, plug_of
from align.library_variables import on_cpu, prepare
from align.plan.checks import rewards_of
from align.plan.spec import StageSpec
from align.stages.pipeline import ENDED, check_place
from align.stages.pipeline import write_end as end_run

__all__ = [
    "ENDED",
    "absent",
    "all_keys",
    "check",
    "check_folder",
    "compose",
    "end_run",
    "message_of",
    "on_cpu",
    "plugs",
    "prepare",
    "run",
    "specs",
    "stages_of_run",
]  # fmt: skip


def compose(words: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """As `align.cli.compose.composed`; raises AlignError for a setting that the chosen plug does not have, too.

    A class is imported for settings alone that the plug's yaml does not list.
    """
    cfg, choices = composed(words)
    for key, choice in choices.items():
        group, _, place = key.partition("@")
        node = OmegaConf.select(cfg, place or group) if group not in GLOBAL else None
        target = node.get(TARGET) if isinstance(node, DictConfig) else None
        if group == "stage" or target in (None, NONE) or section_of(target) is not None:
            continue
        if set(node) - {TARGET, *listed_keys(group, choice)}:
            plug = plug_of(OmegaConf.to_container(node, resolve=False), place or group)
            check_names(plug, target_of(plug))
    return cfg, choices


@cache
def specs() -> dict[str, StageSpec]:
    """Every kind of stage by name, in the order in which all would run."""
    return stage_specs()


def plugs(group: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Name and section of every choice of a group, or of all groups."""
    found = [(one, name) for one, name, *_ in listed() if group in (one, None) and one not in GLOBAL]
    register(specs())
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("align.conf", version_base="1.3"):
        cfg = hydra.compose(ROOT, [f"+{one}@plugs.{i}={name}" for i, (one, name) in enumerate(found)])
    sections = OmegaConf.to_container(cfg).get("plugs", {})
    return [(name, sections[str(i)]) for i, (_, name) in enumerate(found) if str(i) in sections]


def stages_of_run(cfg: DictConfig) -> list[str]:
    """The stages that a run of this configuration has, in their order."""
    return [stage.name for stage in plan_of(cfg).stages]


def absent(section: DictConfig | None) -> bool:
    """The section is not there, or is the choice `none`."""
    return section is None or section.get("_target_") == NONE


def check(cfg: DictConfig, seen: set[str]) -> None:
    """Raise as a run does for what can be known without a model: values, inputs, first rows of data, functions.

    `seen` is changed in place: it holds the data and functions that were looked at before.
    """
    plan = plan_of(cfg)
    sources = str([(getattr(stage.options, "data", None), rewards_of(stage)) for stage in plan.stages])
    if sources not in seen:
        check_first(plan)
        seen.add(sources)


def check_folder(folder: Path) -> None:
    """Raises AlignError if runs cannot be made in the folder; makes nothing."""
    check_place(folder.parent, folder.name)


def all_keys() -> list[str]:
    """Every setting of align's by its dotted key."""
    return list(all_settings(specs()))


def kinds_of(key: str) -> tuple[type, ...]:
    """The types that a setting of align's takes; () for one of a choice, or of none."""
    found = all_settings(specs()).get(key)
    return () if found is None else types_of(found[0])[found[1]]
