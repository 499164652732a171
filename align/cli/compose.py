"""What align adds to Hydra's composition: plugins' configuration folders, `none` that prunes, no stray keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict

from align.checks import NONE
from align.cli.errors import flatten, nearest
from align.cli.plugins import own_folder, plugin_folders, sources
from align.errors import AlignError

ROOT = {
    "name", "seed", "stages", "model", "device", "precision", "cpu_linear", "runs", "data", "pretrain", "sft", "rm",
    "preferences", "best_of", "dpo", "kto", "ppo", "evaluate",
    "actor", "critic", "reference", "reward", "rollout", "advantage", "policy_loss", "watch",
    "tracker",
}  # fmt: skip
SELDOM = ("preferences", "best_of", "dpo", "kto")
"""Stages whose settings are shown and taken where `stages` names them."""
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
    compose = ConfigLoaderImpl.load_configuration

    def composed(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        cfg = compose(self, *args, **kwargs)
        typed = kwargs.get("overrides") or (args[1] if len(args) > 1 else [])
        choices = cfg.hydra.runtime.choices
        refuse_shadowed(choices)
        refuse_values_for_groups(cfg, choices, typed)
        prune_stages(cfg, typed)
        prune(cfg, [word.lstrip("+~").partition("=")[0] for word in typed])
        refuse_strays(cfg, flatten(OmegaConf.to_container(cfg, resolve=False)))
        return cfg

    with mock.patch.object(ConfigLoaderImpl, "load_configuration", composed):
        yield


def composed(words: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """The configuration that the words make, checked like that of a run, and the choice of every group."""
    GlobalHydra.instance().clear()
    with check_composition(words), initialize_config_module("align.conf", version_base="1.3"):
        cfg = compose("config", words, return_hydra_config=True)
    choices = {str(group): choice for group, choice in cfg.hydra.runtime.choices.items()}
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), choices


def prune_stages(cfg: DictConfig, typed: list[str]) -> None:
    """Makes `none` of the nodes of stages that few runs have, where `stages` does not name them."""
    named = OmegaConf.to_container(cfg).get("stages")
    named = named if isinstance(named, list) else [named]
    for stage in (one for one in SELDOM if one in cfg and one not in named):
        for word in typed:
            key = word.lstrip("+~").partition("=")[0]
            if key.startswith(f"{stage}.") or key.partition("@")[2].startswith(f"{stage}."):
                raise AlignError(
                    f"{word}: stages=[{','.join(map(str, named))}] has no {stage}\n  write {stage} into stages, or "
                    "leave the setting out"
                )
        with open_dict(cfg):
            cfg[stage] = {"_target_": NONE}


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


def refuse_strays(cfg: DictConfig, names: list[str], path: str = "") -> None:
    """Refuses keys that the dataclass of a node does not have: `+ppo.typo=1` passes Hydra's own check.

    `names` are all keys of the whole configuration, from which the nearest are shown.
    """
    kind = OmegaConf.get_type(cfg)
    known = {f.name for f in fields(kind)} if is_dataclass(kind) else ROOT | {"hydra"} if not path else None
    for name in cfg:
        if known is not None and name not in known:
            key = f"{path}{name}"
            hint = "\n  in a yaml under experiment, debug or local: begin it with '# @package _global_'"
            beside = [other for other in names if other != key and not other.startswith(f"{key}.")]
            raise AlignError(f"{key}: there is no such key{nearest(key, beside)}{hint if name in GLOBAL else ''}")
        node = None if OmegaConf.is_missing(cfg, name) else cfg._get_node(name)
        if isinstance(node, DictConfig) and name != "hydra" and not node._is_none() and not node._is_interpolation():
            refuse_strays(node, names, f"{path}{name}.")


def refuse_values_for_groups(cfg: DictConfig, choices: dict[str, str | None], typed: list[str]) -> None:
    """Refuses `sft.peft=lora` where `peft@sft.peft=lora` is meant, and a node that was taken out."""
    for word in typed:
        if word.startswith("~") and word[1:] in ROOT:
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
            instead = f"{group}={node or 'NAME'}" if path == package else f"{path}.KEY=VALUE"
            shown = "null" if node is None else node
            raise AlignError(f"{path}={shown} puts a plain value where a node of settings stands\n  write {instead}")


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
