"""Schemas for Hydra from the classes of sections and stages, and the root configuration with every stage in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from align import config
from align.cli.plugins import OWN, defaults_of, plug_file, read_yaml, shown_path, sources
from align.config import SECTIONS, RunOptions
from align.config.fields import FOLLOWS, RARE, shown
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
    """Hydra's schema of a section: its usual settings. It is open: rare ones are taken without `+`.

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
    """Register the sections, the stages and a root configuration with all of them."""
    store = ConfigStore.instance()
    for name, cls in {**SECTIONS, **{name: spec.options for name, spec in specs.items()}}.items():
        if _REGISTERED.get(name) is not cls:
            store.store(group="schema", name=name, node=schema(cls, getattr(cls, "TARGET", "")), provider="align")
            _REGISTERED[name] = cls
    store.store(name=ROOT, node=root(specs), provider="align")


def root(specs: Mapping[str, StageSpec]) -> dict[str, Any]:
    """conf/config.yaml with the keys at the top and a section for each stage; plugs take any key without `+`."""
    made = yaml.safe_load((files("align.conf") / "config.yaml").read_text(encoding="utf-8"))
    made["defaults"] = [*({f"stage@{name}": name} for name in specs), *made["defaults"]]
    top = {name: value for name, value in schema(RunOptions, "").items() if name != TARGET}
    return {**top, **{name: DictConfig({}, flags={"struct": False}) for name in SHARED}, **made}


def default_choices(specs: Mapping[str, StageSpec]) -> dict[str, str | None]:
    """The choice of every group before anything is typed, by what is typed: reward, peft@sft.peft."""
    found: dict[str, str | None] = {}
    for entry in root(specs)["defaults"]:
        key, choice = next(iter(entry.items())) if isinstance(entry, dict) else (entry, None)
        group, _, package = key.partition("@")
        if group != "_self_" and " " not in group:
            found |= _choices(group, choice, package or group)
    return found


def _choices(group: str, choice: str | None, package: str) -> dict[str, str | None]:
    """A choice, and those that its yaml puts below it."""
    found = {group if package == group else f"{group}@{package}": choice}
    inside = defaults_of(group, read_yaml(plug_file(group, choice))) if choice else ()
    for home, name, below in inside:
        found |= _choices(home, name, f"{package}.{below}") if below else {}
    return found


def stage_specs() -> dict[str, StageSpec]:
    """Every stage of a folder `stage` on align's search path, by name, in the order in which all would run.

    An installed stage whose spec cannot be imported is left out, with a warning; one of ./conf raises AlignError.
    """
    files = [(source, file) for source, folder in sources() for file in sorted((folder / "stage").glob("*.yaml"))]
    return dict(_specs(tuple((source, file, file.stat().st_mtime_ns) for source, file in files)))


@cache
def _specs(files: tuple[tuple[str, Path, int], ...]) -> dict[str, StageSpec]:
    """The stages of these yamls, read once as long as they do not change."""
    found: dict[str, StageSpec] = {}
    for source, file, _ in files:
        try:
            found.setdefault(file.stem, _spec(file))
        except AlignError as error:
            if source == OWN:
                raise
            warnings.warn(f"stage {file.stem} of {source} is left out: {error}", AlignWarning, stacklevel=3)
    return {name: found[name] for name in ordered(list(found), found, {})}


def _spec(file: Path) -> StageSpec:
    name, target = file.stem, read_yaml(file).get(TARGET)
    place = f"{shown_path(file)}: {TARGET}={shown(target)}"
    remedy = f"use {TARGET}: MODULE.SPEC, an align.plan.spec.StageSpec of the name {name}"
    if not isinstance(target, str):
        raise AlignError(f"{place}: it names no stage\n  {remedy}")
    try:
        spec = locate(target)
    except Exception as error:  # whatever a plugin's own import raises
        reason = (str(error).splitlines() or [""])[0]
        raise AlignError(
            f"{place}: cannot be imported: {type(error).__name__}: {reason} ({import_failed_at(error)})\n  {remedy}"
        ) from error
    if not isinstance(spec, StageSpec) or spec.name != name:
        raise AlignError(f"{place}: it is no stage of this name\n  {remedy}")
    return spec


def section_of(node: Mapping[str, Any], name: str, specs: Mapping[str, StageSpec]) -> type | None:
    """The class of a section: by its name a stage's, else by its `_target_`; None for a plug of others."""
    if name in specs:
        return specs[name].options
    return config.section_of(node.get(TARGET))


def all_settings(specs: Mapping[str, StageSpec]) -> dict[str, tuple[type, str]]:
    """Every setting of stages and shared sections, and every key at the top, by dotted key: its class and its name."""
    homes = {**{name: spec.options for name, spec in specs.items()}}
    homes |= {cls.SECTION: cls for cls in SECTIONS.values() if cls.SECTION in SHARED}
    found = {f"{home}.{one.name}": (cls, one.name) for home, cls in homes.items() for one in fields(cls)}
    found |= {one.name: (RunOptions, one.name) for one in fields(RunOptions)}
    for cls in SECTIONS.values():  # of several choices, the first that has it
        for one in fields(cls):
            found.setdefault(f"{cls.SECTION}.{one.name}", (cls, one.name))
    return found
