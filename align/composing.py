"""What align adds to Hydra's composition: plugins' configuration folders, `none` that prunes, no stray keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest import mock

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict

from align.errors import AlignError

NONE = "align.config.none"
ROOT = {
    "name", "seed", "stages", "model", "device", "precision", "runs", "data", "pretrain", "sft", "rm", "ppo",
    "evaluate", "actor", "critic", "reference", "reward", "rollout", "advantage", "tracker",
}  # fmt: skip


class AlignSearchPath(SearchPathPlugin):
    """Adds ./conf of the folder one stands in, and the configuration folder of every installed plugin."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if not any(entry.path == "pkg://align.conf" for entry in search_path.get_path()):
            return  # another Hydra application in this process
        own = Path.cwd() / "conf"
        if own.is_dir() and not (own / "__init__.py").exists():
            search_path.append(provider="conf", path=f"file://{own}")
        for entry in sorted(entry_points(group="align.conf"), key=lambda entry: entry.name):
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
        prune(cfg, [word.lstrip("+~").partition("=")[0] for word in typed])
        refuse_strays(cfg)
        return cfg

    with mock.patch.object(ConfigLoaderImpl, "load_configuration", composed):
        yield


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


def refuse_strays(cfg: DictConfig, path: str = "") -> None:
    """Refuses keys that the dataclass of a node does not have: `+ppo.typo=1` passes Hydra's own check."""
    kind = OmegaConf.get_type(cfg)
    known = {f.name for f in fields(kind)} if is_dataclass(kind) else ROOT | {"hydra"} if not path else None
    for name in cfg:
        if known is not None and name not in known:
            near = difflib.get_close_matches(str(name), known, n=3)
            raise AlignError(
                f"{path}{name}: there is no such key\n  nearest: {', '.join(path + n for n in near) or 'none'}"
            )
        node = None if OmegaConf.is_missing(cfg, name) else cfg._get_node(name)
        if isinstance(node, DictConfig) and name != "hydra" and not node._is_none() and not node._is_interpolation():
            refuse_strays(node, f"{path}{name}.")
