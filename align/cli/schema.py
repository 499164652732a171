"""Schemas for Hydra from the classes of sections and stages, and the root configuration with every stage in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import MISSING, field, fields, make_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from align.cli.plugins import sources
from align.config import SECTIONS
from align.config.fields import ALLOWED, FOLLOWS
from align.config.values import TARGET, Settings, plain
from align.errors import AlignError, AlignWarning
from align.imports import import_failed_at, locate
from align.plan.order import ordered
from align.plan.spec import StageSpec

ROOT = "align"
"""The name under which Hydra finds the root configuration."""
KNOWN_TYPES = (int, float, str, bool, int | None, float | None, str | None, bool | None)


def open_node() -> DictConfig:
    """A node that takes any key without `+`: arguments of other libraries and of users' functions."""
    return DictConfig({}, flags={"struct": False})


def schema(cls: type, target: str | None = None) -> type:
    """A class that Hydra can take for a section: the same fields and defaults, types that OmegaConf knows."""
    hints = get_type_hints(cls)
    made = [] if target is None else [(TARGET, str, field(default=target))]
    for one in fields(cls):
        if hints[one.name] is Settings:
            made.append((one.name, Any, field(default_factory=open_node)))
            continue
        follows = one.metadata.get(FOLLOWS)
        default = one.default_factory() if one.default is MISSING else one.default
        default = f"${{{follows}}}" if follows else default
        hint = hints[one.name] if hints[one.name] in KNOWN_TYPES else Any
        if isinstance(default, tuple):
            made.append((one.name, Any, field(default_factory=lambda default=default: plain(default))))
        else:
            made.append((one.name, hint, field(default=default)))
    return make_dataclass(cls.__name__, made)


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


def constraint(cls: type, name: str) -> str:
    """The values that a field takes, in words; '' where its type says it all."""
    allowed = next(one for one in fields(cls) if one.name == name).metadata.get(ALLOWED)
    return "" if allowed is None else str(allowed)
