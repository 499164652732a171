"""Additions to Hydra's composition: plugins' configuration folders, `none` that prunes, no stray keys."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_module
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import GroupDefault, InputDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError

from align.cli.choices import GLOBAL, drop_settings_of_others
from align.cli.errors import coming_with, unknown_below, unresolved
from align.cli.plugins import OWN, own_folder, plug_files, plugin_folders, readable, shown_path
from align.cli.schema import ROOT, SHARED, default_choices, register, section_of, stage_specs
from align.config import RunOptions
from align.config.fields import shown
from align.config.values import NONE, TARGET
from align.errors import AlignError, AlignWarning
from align.plan.order import kind_of, named_stages, with_evaluation
from align.plan.parse import FROM_ENVIRONMENT, judges, parse, read
from align.plan.plan import RunPlan
from align.plan.spec import StageSpec
from align.secrets import learn

ROOT_KEYS = (*(one.name for one in fields(RunOptions)), "data", "tracker")


class AlignSearchPath(SearchPathPlugin):
    """Adds ./conf of the folder one stands in, and the configuration folder of every installed plugin."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if not any(entry.path == "pkg://align.conf" for entry in search_path.get_path()):
            return  # another Hydra application in this process
        if own := own_folder():
            search_path.append(provider="conf", path=f"file://{own}")
        for entry in plugin_folders():
            search_path.append(provider=entry.name, path=f"pkg://{entry.value}")


Plugins.instance().register(AlignSearchPath)


@contextmanager
def check_composition() -> Iterator[None]:
    """Inside, every configuration that Hydra composes is pruned and checked, that of `--cfg job` too.

    Hydra 1.3 has no hook after composition, nor one around a file, so that two of its methods are wrapped. It composes
    once to learn the run's mode and once for the run, which are one here; and it makes a table of all choices for every
    file, which only a file whose defaults name others by `${…}` needs: together three fifths of its time.
    """
    compose, load, specs = ConfigLoaderImpl.load_configuration, ConfigRepository.load_config, stage_specs()
    choices_by_name = defaults_list._create_interpolation_map
    register(specs)
    of_mode: dict[tuple[str, ...], DictConfig] = {}

    def load_configuration(
        self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], run_mode: RunMode,
        from_shell: bool = True, validate_sweep_overrides: bool = True,
    ) -> DictConfig:  # fmt: skip
        given = overrides[:-1] if overrides[-1:] == ["hydra.mode=RUN"] else overrides
        if not validate_sweep_overrides:  # the mode is wanted
            of_mode[tuple(given)] = cfg = composed(self, config_name, overrides, RunMode.RUN, from_shell, False)
            return cfg
        if run_mode == RunMode.RUN and (cfg := of_mode.pop(tuple(given), None)) is not None:
            self.validate_sweep_overrides_legal(OverridesParser.create().parse_overrides(given), run_mode, from_shell)
            cfg.hydra.mode = RunMode.RUN
            cfg.hydra.overrides.hydra.extend(overrides[len(given) :])
            return cfg
        return composed(self, config_name, overrides, run_mode, from_shell, validate_sweep_overrides)

    def composed(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        typed = kwargs.get("overrides") or (args[1] if len(args) > 1 else [])
        check_typed(typed, specs)
        cfg = compose(self, *args, **kwargs)
        choices = cfg.hydra.runtime.choices
        check_clashes(choices)
        check_sections(cfg, choices)
        alone = lambda words: compose(self, ROOT, words, RunMode.RUN)
        drop_settings_of_others(cfg, typed, alone, lambda: default_choices(specs))
        check_names(cfg, specs, choices)
        prune_sections(cfg, typed, specs)
        prune(cfg, typed, choices)
        learn("", {name: one for name, one in OmegaConf.to_container(cfg, resolve=False).items() if name != "hydra"})
        return cfg

    def loaded(self: ConfigRepository, config_path: str) -> Any:
        with readable(f"{config_path}.yaml"):
            found = load(self, config_path)
        if found is not None:
            check_file(found, config_path)
        return found

    def choices_where_named(overrides: Any, defaults: list[InputDefault], self_added: bool) -> DictConfig | None:
        return choices_by_name(overrides, defaults, self_added) if any(d.is_interpolation() for d in defaults) else None

    with (
        mock.patch.object(ConfigLoaderImpl, "load_configuration", load_configuration),
        mock.patch.object(ConfigRepository, "load_config", loaded),
        mock.patch.object(defaults_list, "_create_interpolation_map", choices_where_named),
    ):
        yield


def composed(words: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """The configuration that the words make, checked like that of a run, and the choice of every group."""
    GlobalHydra.instance().clear()
    with check_composition(), initialize_config_module("align.conf", version_base="1.3"):
        cfg = compose(ROOT, words, return_hydra_config=True)
    choices = {str(group): choice for group, choice in cfg.hydra.runtime.choices.items()}
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), choices


def prune_sections(cfg: DictConfig, typed: list[str], specs: Mapping[str, StageSpec]) -> None:
    """Take out the sections that no stage of the run reads; warn of a key of one that was typed."""
    values = OmegaConf.to_container(cfg, resolve=False)
    try:
        named = named_stages(read(values.get("stages")), specs)
    except (AlignError, InterpolationResolutionError):
        return  # the plan raises it
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


def prune(cfg: DictConfig, typed: list[str], choices: Mapping[str, str | None], path: str = "") -> None:
    """Leave of a section that is `none` only its `_target_`; a key below it that the user typed is refused."""
    for name in list(cfg):
        node = cfg._get_node(name) if not OmegaConf.is_missing(cfg, name) else None
        if not isinstance(node, DictConfig) or name == "hydra" or node._is_none():
            continue
        here = f"{path}{name}"
        if node.get(TARGET) != NONE:
            prune(node, typed, choices, f"{here}.")
            continue
        for word in typed:
            key = word.lstrip("+~").partition("=")[0].rpartition("@")[2]
            if key.startswith(f"{here}."):
                hint = coming_with(key, choices) or f"leave it out, or choose another {here}"
                raise AlignError(f"{word}: {here} is none, so it has no such key\n  {hint}")
        with open_dict(node):
            for key in [key for key in node if key != TARGET]:
                del node[key]


def check_names(
    cfg: DictConfig, specs: Mapping[str, StageSpec], choices: Mapping[str, str | None], path: str = ""
) -> None:
    """Raise AlignError for a key that its section does not have, in sections that no stage reads, too."""
    cls = None if not path else section_of(cfg, path.rstrip("."), specs)
    known = [one.name for one in fields(cls)] + [TARGET] if cls else None if path else [*ROOT_KEYS, *SHARED, *specs]
    for name in cfg:
        if not path and name in GLOBAL:
            raise AlignError(
                f"{name}: it is no section\n  use '# @package _global_' as the first line of the yaml in {name}"
            )
        if known is not None and name not in known and name != "hydra":
            raise unknown_below(f"{path}{name}", cfg._get_node(name)._value(), known, choices)
        node = None if OmegaConf.is_missing(cfg, name) else cfg._get_node(name)
        if isinstance(node, DictConfig) and name != "hydra" and not node._is_none() and not node._is_interpolation():
            check_names(node, specs, choices, f"{path}{name}.")


def check_typed(typed: list[str], specs: Mapping[str, StageSpec]) -> None:
    """Raise AlignError for a section that is taken out, and for settings of one instance of a stage alone."""
    for word in typed:
        key = word.lstrip("+~").partition("=")[0]
        kind, _, rest = key.partition("@")
        if word.startswith("~") and key in (*ROOT_KEYS, *SHARED, *specs):
            raise AlignError(f"{word}: a section stays\n  leave it out (critic=none and tracker=none are choices)")
        if kind in specs and rest[:1].isdigit():
            raise AlignError(
                f"{word}: {kind} and {rest.partition('.')[0].join((f'{kind}@', ''))} share the section {kind}\n"
                f"  use {kind}.{rest.partition('.')[2] or 'KEY'}, for both, or two runs"
            )


def check_sections(cfg: DictConfig, choices: Mapping[str, str | None]) -> None:
    """Raise AlignError for `sft.peft=lora` where `peft@sft.peft=lora` is meant."""
    for group in choices:
        package = group.partition("@")[2] or group
        if group.startswith("hydra/") or package in GLOBAL:
            continue
        node, path = cfg, ""
        for part in package.split("."):
            node, path = node.get(part), f"{path}.{part}".removeprefix(".")
            if not isinstance(node, DictConfig):
                break
        if not isinstance(node, DictConfig) and not (node is None and part in ("peft", "zero", "critic", "tracker")):
            is_choice = path == package and not group.startswith("stage@")
            instead = f"{group}={node or 'NAME'}" if is_choice else f"{path}.KEY=VALUE"
            raise AlignError(f"{path}={shown(node)}: it is a section of settings, no value\n  use {instead}")


def check_clashes(choices: Mapping[str, str | None]) -> None:
    """Raise AlignError for a choice of which there are two: the first on the search path would win."""
    for key, choice in choices.items():
        group = key.partition("@")[0]
        if choice and not group.startswith("hydra/"):
            owners = plug_files(group, choice)
            if len(owners) > 1:
                first, second, *_ = owners
                rename = OWN if OWN in owners else second
                raise AlignError(
                    f"{key}={choice}: both {first} and {second} have one\n  use another name for {owners[rename]}"
                )


def check_file(found: ConfigResult, path: str) -> None:
    """Raise AlignError for a yaml that is a list, or that chooses its own group, so that Hydra finds no end."""
    group, file = path.rpartition("/")[0], shown_path(f"{found.path.removeprefix('file://')}/{path}.yaml")
    if not isinstance(found.config, DictConfig):
        raise AlignError(f"{file}: it is a list\n  use KEY: VALUE, one a line")
    for one in found.defaults_list or ():
        if isinstance(one, GroupDefault) and group and one.group == f"/{group}" and not one.package:
            raise AlignError(
                f"{file}: its defaults choose {group} again ({one.group}: {one.value})\n"
                f"  use '- {one.group}/{one.value}' there, and '- _self_' below it"
            )


def plan_of(cfg: DictConfig) -> RunPlan:
    """The plan of a composed configuration."""
    return parse(resolved(cfg), stage_specs())


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A configuration with its references resolved, but for those to the environment, which may be secrets.

    Raises AlignError for a reference to nothing.
    """

    def kept(raw: Any, value: Any) -> Any:
        if isinstance(raw, dict) and isinstance(value, dict):
            return {name: kept(raw.get(name), one) for name, one in value.items()}
        if isinstance(raw, list) and isinstance(value, list):
            return [kept(*pair) for pair in zip(raw, value, strict=True)]
        from_environment = isinstance(raw, str) and isinstance(value, str) and FROM_ENVIRONMENT in raw
        return raw if from_environment else value

    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    try:
        return kept(OmegaConf.to_container(cfg, resolve=False), OmegaConf.to_container(cfg, resolve=True))
    except InterpolationResolutionError as error:
        raise unresolved(error) from error


def as_yaml(cfg: DictConfig) -> str:
    """The file config.yaml of a stage."""
    return OmegaConf.to_yaml(OmegaConf.create({"whole": resolved(cfg)}).whole)
