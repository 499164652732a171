"""Settings to a configuration, checked as a run would check it, without a model. No torch.

Every name of align's command line, composition and checks that this package uses is imported here, and nowhere else.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from align.build import Build
from align.checks import absent
from align.cli.compose import GLOBAL
from align.cli.compose import composed as compose
from align.cli.errors import explain
from align.cli.main import run  # it registers the schemas with Hydra, too
from align.cli.plugins import plugs as listed
from align.library_variables import on_cpu, prepare
from align.looking import first_look
from align.stages.pipeline import ENDED, check_place
from align.stages.pipeline import write_end as end_run

__all__ = [
    "ENDED", "absent", "check", "check_folder", "compose", "end_run", "explain", "has_learned_reward", "on_cpu",
    "plugs", "prepare", "run", "stages_of_run",
]  # fmt: skip


def plugs(group: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Name and section of every choice of a group, or of all groups."""
    found = [(one, name) for one, name, *_ in listed() if group in (one, None) and one not in GLOBAL]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("align.conf", version_base="1.3"):
        cfg = hydra.compose("config", [f"+{one}@plugs.{i}={name}" for i, (one, name) in enumerate(found)])
    sections = OmegaConf.to_container(cfg).get("plugs", {})
    return [(name, sections[str(i)]) for i, (_, name) in enumerate(found) if str(i) in sections]


def stages_of_run(cfg: DictConfig) -> list[str]:
    """The stages that a run of this configuration has, in their order."""
    return Build(cfg).stages


def has_learned_reward(cfg: DictConfig) -> bool:
    return Build(cfg).sources().learned_reward


def check(cfg: DictConfig, seen: set[str]) -> None:
    """Raise as a run does for what can be known without a model: values, inputs, first rows of data, functions.

    `seen` is changed in place: it holds the data and functions that were looked at before.
    """
    cfg = copy.deepcopy(cfg)
    OmegaConf.resolve(cfg)
    build = Build(cfg)
    for stage in build.stages:
        build.sources().inputs(stage, {})
    sources = str([cfg[stage].get("data") for stage in build.stages] + list(build.rewards().values()))
    if sources not in seen:
        first_look(build)
        seen.add(sources)


def check_folder(folder: Path) -> None:
    """Raises AlignError if runs cannot be made in the folder; makes nothing."""
    check_place(folder.parent, folder.name)
