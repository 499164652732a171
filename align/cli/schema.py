"""Schemas for Hydra from the classes of sections and stages, and the root configuration with every stage in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from align import config
from align.cli.plugins import sources
from align.config import SECTIONS
from align.config.fields import FOLLOWS, RARE
from align.config.values import TARGET, plain
from align.errors import AlignError, AlignWarning
from align.imports import import_failed_at, locate
from align.plan.order import ordered
from align.plan.spec import StageSpec

SHARED = ("actor", "critic", "reference", "reward", "rollout", "advantage", "policy_loss", "watch")
"""Sections that belong to no single stage."""
ROOT = "align"
"""The name under which Hydra finds the root configuration."""


def schema(cls: type, target: str) -> DictConfig:
    """The node that Hydra composes for a section: its usual settings. It is open: rare ones are taken without `+`.

    Names and values are checked when the configuration becomes a plan (`align.config.fields`).
    """
    made: dict[str, Any] = {TARGET: target}
    for one in fields(cls):
        if not one.metadata.get(RARE):
            follows = one.metadata.get(FOLLOWS)
            default = one.default_factory() if one.default is MISSING else one.default
            made[one.name] = f"${{{follows}}}" if follows else plain(default)
    return DictConfig(made, flags={"struct": False})


_REGISTERED: dict[str, type] = {}


def register(specs: Mapping[str, StageSpec]) -> None:
    """Tell Hydra of the sections, of the stages, and of a root configuration that has all these stages."""
    store = ConfigStore.instance()
    for name, cls in {**SECTIONS, **{name: spec.options for name, spec in specs.items()}}.items():
        if _REGISTERED.get(name) is not cls:
            store.store(group="schema", name=name, node=schema(cls, getattr(cls, "TARGET", "")), provider="align")
            _REGISTERED[name] = cls
    store.store(name=ROOT, node=root(specs), provider="align")


def root(specs: Mapping[str, StageSpec]) -> dict[str, Any]:
    """conf/config.yaml with a node for each stage."""
    made = yaml.safe_load((files("align.conf") / "config.yaml").read_text(encoding="utf-8"))
    made["defaults"] = [*({f"stage@{name}": name} for name in specs), *made["defaults"]]
    return made


def stage_specs() -> dict[str, StageSpec]:
    """Every stage of a folder `stage` on align's search path, by name, in the order in which all would run.

    A stage whose spec cannot be imported is left out, with a warning.
    """
    found: dict[str, StageSpec] = {}
    for source, folder in sources():
        for file in sorted((folder / "stage").glob("*.yaml")):
            try:
                found.setdefault(file.stem, _spec(file))
            except AlignError as error:
                warnings.warn(f"stage {file.stem} of {source} is left out: {error}", AlignWarning, stacklevel=2)
    return {name: found[name] for name in ordered(list(found), found, {})}


def _spec(file: Path) -> StageSpec:
    name = file.stem
    line = next((line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith(TARGET)), "")
    target = line.partition(":")[2].strip()
    try:
        spec = locate(str(target))
    except Exception as error:  # whatever a plugin's own import raises
        reason = (str(error).splitlines() or [""])[0]
        raise AlignError(
            f"stage.{name}._target_={target}: cannot be imported: {type(error).__name__}: {reason} "
            f"({import_failed_at(error)})"
        ) from error
    if not isinstance(spec, StageSpec) or spec.name != name:
        raise AlignError(f"stage.{name}._target_={target}: no align.plan.spec.StageSpec of the name {name}")
    return spec


def section_of(node: Mapping[str, Any], name: str, specs: Mapping[str, StageSpec]) -> type | None:
    """The class of the settings of a node: by its name a stage's, else by its `_target_`; None for a plug of others."""
    if name in specs:
        return specs[name].options
    return config.section_of(node.get(TARGET))


def all_settings(specs: Mapping[str, StageSpec]) -> dict[str, tuple[type, str]]:
    """Every setting of stages and shared sections by dotted key: its class and its name there."""
    homes = {**{name: spec.options for name, spec in specs.items()}}
    homes |= {cls.SECTION: cls for cls in SECTIONS.values() if cls.SECTION in SHARED}
    found = {f"{home}.{one.name}": (cls, one.name) for home, cls in homes.items() for one in fields(cls)}
    for cls in SECTIONS.values():  # of several choices, the first that has it
        for one in fields(cls):
            found.setdefault(f"{cls.SECTION}.{one.name}", (cls, one.name))
    return found
