"""Additions to Hydra's composition: plugins' configuration folders, `none` that prunes, no stray keys."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict

from align.cli.errors import unknown_key
from align.cli.plugins import keys_of, own_folder, plugin_folders, sources
from align.cli.schema import ROOT, SHARED, register, section_of, stage_specs
from align.config.values import NONE, TARGET
from align.errors import AlignError, AlignWarning
from align.plan.order import kind_of, named_stages, with_evaluation
from align.plan.parse import FROM_ENVIRONMENT, judges, parse, read
from align.plan.plan import RunPlan
from align.plan.spec import StageSpec

ROOT_KEYS = ("name", "seed", "stages", "model", "device", "precision", "cpu_linear", "runs", "data", "tracker")
GLOBAL = ("experiment", "debug", "sweep", "local")
"""Groups whose files have no node of their own."""


class AlignSearchPath(SearchPathPlugin):
    """Adds ./conf of the folder one stands in, and the configuration folder of every installed plugin."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if not any(entry.path == "pkg://align.conf" for entry in search_path.get_path()):
            return  # another Hydra application in this process
        if own := own_folder():
            search_path.append(provider="conf", path=f"file://{own}")
        for entry in plugin_folders():
            search_path.append(provider=entry.name, path=f"pkg://{entry.value}")


@contextmanager
def check_composition(words: list[str]) -> Iterator[None]:
    """Inside, every configuration that Hydra composes is pruned and checked, that of `--cfg job` too.

    Hydra 1.3 has no hook after composition, so its loader's method is wrapped.
    """
    compose, specs = ConfigLoaderImpl.load_configuration, stage_specs()
    register(specs)

    def composed(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        cfg = compose(self, *args, **kwargs)
        typed = kwargs.get("overrides") or (args[1] if len(args) > 1 else [])
        choices = cfg.hydra.runtime.choices
        refuse_shadowed(choices)
        refuse_values_for_groups(cfg, choices, typed, specs)
        prune_sections(cfg, typed, specs)
        prune(cfg, [word.lstrip("+~").partition("=")[0] for word in typed])
        refuse_strays(cfg, specs)
        refuse_unlisted(choices, typed)
        return cfg

    with mock.patch.object(ConfigLoaderImpl, "load_configuration", composed):
        yield


def composed(words: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """The configuration that the words make, checked like that of a run, and the choice of every group."""
    GlobalHydra.instance().clear()
    with check_composition(words), initialize_config_module("align.conf", version_base="1.3"):
        cfg = compose(ROOT, words, return_hydra_config=True)
    choices = {str(group): choice for group, choice in cfg.hydra.runtime.choices.items()}
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), choices


def prune_sections(cfg: DictConfig, typed: list[str], specs: Mapping[str, StageSpec]) -> None:
    """Take out the sections that no stage of the run reads; warn of a key of one that was typed."""
    values = OmegaConf.to_container(cfg, resolve=False)
    try:
        named = named_stages(read(values.get("stages")), specs)
    except AlignError:
        return  # the plan tells
    names = with_evaluation(named, specs, judges(values))
    kinds = {kind_of(name) for name in names}
    used = {one for kind in kinds for one in (kind, *specs[kind].sections(values.get(kind) or {}, kinds))}
    for section in [one for one in (*specs, *SHARED) if one in cfg and one not in used]:
        last = section in specs and specs[section].last  # its settings decide whether it runs
        for word in [] if last else typed:
            key = word.lstrip("+~").partition("=")[0]
            if key.startswith(f"{section}.") or key.partition("@")[2].startswith(f"{section}."):
                warnings.warn(
                    f"{word}: no stage of stages=[{','.join(named)}] reads {section}, so it changes nothing",
                    AlignWarning, stacklevel=2,
                )  # fmt: skip
        with open_dict(cfg):
            del cfg[section]


def prune(cfg: DictConfig, typed: list[str], path: str = "") -> None:
    """Leaves of a `none` node only its `_target_`; a key below it that the user typed is refused."""
    for name in list(cfg):
        node = cfg._get_node(name) if not OmegaConf.is_missing(cfg, name) else None
        if not isinstance(node, DictConfig) or name == "hydra" or node._is_none():
            continue
        here = f"{path}{name}"
        if node.get("_target_") == NONE:
            for word in typed:
                group, _, package = word.partition("@")
                below = word.startswith(f"{here}.") or package.startswith(f"{here}.")
                if below and group:
                    raise AlignError(f"{word}: {here} is none, so it has no such key\n  leave it out, or choose {here}")
            with open_dict(node):
                for key in [key for key in node if key != "_target_"]:
                    del node[key]
        else:
            prune(node, typed, f"{here}.")


def refuse_strays(cfg: DictConfig, specs: Mapping[str, StageSpec], path: str = "") -> None:
    """Raise AlignError for a key that the section of a node does not have."""
    section = None if not path else section_of(cfg, path.rstrip("."), specs)
    known = None if section is None else {one.name for one in fields(section)} | {TARGET}
    known = {*ROOT_KEYS, *SHARED, *specs, "hydra"} if not path else known
    for name in cfg:
        if known is not None and name not in known:
            hint = "\n  in a yaml under experiment, debug or local: begin it with '# @package _global_'"
            raise AlignError(f"{unknown_key(f'{path}{name}')}{hint if name in GLOBAL else ''}")
        node = None if OmegaConf.is_missing(cfg, name) else cfg._get_node(name)
        if isinstance(node, DictConfig) and name != "hydra" and not node._is_none() and not node._is_interpolation():
            refuse_strays(node, specs, f"{path}{name}.")


def refuse_unlisted(choices: dict[str, str | None], typed: list[str]) -> None:
    """Raise AlignError for a key below a choice whose yaml lists its settings, and not this one; `+KEY` adds one.

    Nodes inside an open section are open for Hydra, too. A yaml with a `_target_` alone lists nothing, and takes all.
    """
    homes = {key.partition("@")[2]: (key.partition("@")[0], choice) for key, choice in choices.items() if "@" in key}
    for word in typed:
        key = word.partition("=")[0]
        home = max((one for one in homes if key.startswith(f"{one}.")), key=len, default=None)
        if home is not None and homes[home][0] not in ("stage", "reward") and not key.startswith(("+", "~")):
            group, choice = homes[home]
            listed = [name for name, having in keys_of(group).items() if choice in having]
            if listed and key.removeprefix(f"{home}.").partition(".")[0] not in listed:
                raise AlignError(unknown_key(key))


def refuse_values_for_groups(
    cfg: DictConfig, choices: dict[str, str | None], typed: list[str], specs: Mapping[str, StageSpec]
) -> None:  # fmt: skip
    """Refuses `sft.peft=lora` where `peft@sft.peft=lora` is meant, and a node that was taken out."""
    for word in typed:
        if word.startswith("~") and word[1:] in (*ROOT_KEYS, *SHARED, *specs):
            raise AlignError(
                f"{word} takes a whole node out\n  leave it out (critic=none and tracker=none are choices)"
            )
    for group in choices:
        package = group.partition("@")[2] or group
        if group.startswith("hydra/") or package in GLOBAL:
            continue
        node, path = cfg, ""
        for part in package.split("."):
            node, path = node.get(part), f"{path}.{part}".removeprefix(".")
            if not isinstance(node, DictConfig):
                break
        if node is None and part in ("peft", "zero", "critic", "tracker"):
            continue
        if not isinstance(node, DictConfig):
            is_choice = path == package and not group.startswith("stage@")
            instead = f"{group}={node or 'NAME'}" if is_choice else f"{path}.KEY=VALUE"
            shown = "null" if node is None else node
            raise AlignError(f"{path}={shown} puts a plain value where a node of settings stands\n  use {instead}")


def refuse_shadowed(choices: dict[str, str | None]) -> None:
    """Refuses a choice of which there are two: the first on the search path would win, unsaid."""
    places = sources()
    for key, choice in choices.items():
        group = key.partition("@")[0]
        if choice and not group.startswith("hydra/"):
            owners = [name for name, folder in places if (folder / group / f"{choice}.yaml").exists()]
            if len(owners) > 1:
                raise AlignError(
                    f"{key}={choice}: both {owners[0]} and {owners[1]} have one, and that of {owners[0]} would win\n"
                    f"  rename {group}/{choice}.yaml of {owners[1]}"
                )


def plan_of(cfg: DictConfig) -> RunPlan:
    """The plan of a composed configuration."""
    return parse(resolved(cfg), stage_specs())


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A configuration with its references resolved, but for those to the environment, which may be secrets."""

    def kept(raw: Any, value: Any) -> Any:
        if isinstance(raw, dict) and isinstance(value, dict):
            return {name: kept(raw.get(name), one) for name, one in value.items()}
        if isinstance(raw, list) and isinstance(value, list):
            return [kept(*pair) for pair in zip(raw, value, strict=True)]
        from_environment = isinstance(raw, str) and isinstance(value, str) and FROM_ENVIRONMENT in raw
        return raw if from_environment else value

    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return kept(OmegaConf.to_container(cfg, resolve=False), OmegaConf.to_container(cfg, resolve=True))


def as_yaml(cfg: DictConfig) -> str:
    """The file config.yaml of a stage."""
    return OmegaConf.to_yaml(OmegaConf.create({"whole": resolved(cfg)}).whole)
