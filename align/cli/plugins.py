"""`align plugins`: every plug, its group, where it comes from, its one-line help. Imports none of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path

import yaml

from align.config import SECTIONS
from align.errors import AlignError, AlignWarning

HIDDEN = {"local"}
OWN = "./conf"
"""The user's own folder among the sources of plugs."""


def own_folder() -> Path | None:
    """./conf of the folder one stands in, unless it is a Python package's (align's own repository)."""
    own = Path.cwd() / "conf"
    return own if own.is_dir() and not (own / "__init__.py").exists() else None


@cache
def plugin_folders() -> list[EntryPoint]:
    """The configuration folder of every installed plugin; one that is not there is left out, with a warning."""
    found = []
    for entry in sorted(entry_points(group="align.conf"), key=lambda entry: entry.name):
        try:
            files(entry.value)
            found.append(entry)
        except ModuleNotFoundError as error:
            owner = entry.dist.name if entry.dist else entry.name
            warnings.warn(f"plugin {owner} is left out: {error}\n  install it again", AlignWarning, stacklevel=2)
    return found


def sources() -> list[tuple[str, Path]]:
    """Sources of plugs, in Hydra's order: the first that has a name wins."""
    own = own_folder()
    align, *installed = _installed()
    return [align, *([(OWN, own)] if own else []), *installed]


@cache
def _installed() -> list[tuple[str, Path]]:
    """The configuration folders of align and of every installed plugin, with who brings them."""
    found = [(f"{e.dist.name} {e.dist.version}", Path(str(files(e.value)))) for e in plugin_folders()]
    return [("align", Path(str(files("align.conf")))), *found]


def shown_path(file: str | Path) -> str:
    """A path as it is short: from the folder one stands in."""
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Inside, the yaml `name` is read: AlignError with file, line and remedy where it is no yaml of settings."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{shown_path(mark.name)}:{mark.line + 1}" if mark else name
        remedy = next((text for word, text in REMEDIES.items() if word in str(error.problem)), INDENT)
        raise AlignError(f"{place}: {error.problem}\n  {remedy}") from error
    except (yaml.YAMLError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise AlignError(f"{name}: {reason}\n  use KEY: VALUE, one a line") from error


REMEDIES = {"'\\t'": "use spaces, not a tab, to indent", "duplicate key": "use the key once"}
"""Remedies by words in what the yaml reader says."""
INDENT = "use the same indent for all keys of a section, and quotes around a value with ': '"
"""The remedy for all else."""


def read_yaml(file: Path) -> dict:
    """The settings in a yaml. Raises AlignError where it holds none."""
    with readable(shown_path(file)):
        found = yaml.safe_load(file.open(encoding="utf-8")) or {}
        if not isinstance(found, dict):
            raise ValueError("it is a list or a value")
        return found


def plugs() -> list[tuple[str, str, str, str]]:
    """(group, name, source, help) of every yaml on align's search path, its own first."""
    found = []
    for source, folder in sources():
        for file in sorted(folder.rglob("*.yaml")):
            group = file.parent.relative_to(folder).as_posix()
            if group != "." and group not in HIDDEN:
                found.append((group, file.stem, source, first_comment(file)))
    return found


def plug_files(group: str, name: str) -> dict[str, Path]:
    """The yamls of a plug's name, by their sources, in Hydra's order; one, unless names clash."""
    files = {source: folder / group / f"{name}.yaml" for source, folder in sources()}
    return {source: file for source, file in files.items() if file.exists()}


def plug_file(group: str, name: str) -> Path:
    """The yaml of a plug that `plugs` lists."""
    return next(iter(plug_files(group, name).values()))


def keys_of(group: str) -> dict[str, list[str]]:
    """The first keys below the choices of a group (of `peft` for `peft@sft.peft`), and which choices have each."""
    group = group.partition("@")[0]
    found: dict[str, list[str]] = {}
    for one, name, *_ in plugs():
        if one == group:
            for key in listed_keys(group, name):
                found.setdefault(key, []).append(name)
    return found


def listed_keys(group: str, name: str) -> list[str]:
    """Keys of a plug's yaml, of its schema and of the sections that its defaults list puts below it."""
    node = read_yaml(plug_file(group, name))
    keys = [key for key in node if key not in ("defaults", "_target_")]
    for home, name, package in defaults_of(group, node):
        if package:
            keys.append(package.partition(".")[0])
        elif home == "schema" and name in SECTIONS:
            keys += [field.name for field in fields(SECTIONS[name])]
    return list(dict.fromkeys(keys))


def defaults_of(group: str, node: dict) -> Iterator[tuple[str, str | None, str]]:
    """Yield each entry in the defaults of a plug's yaml: group, choice, and the section below the plug, '' for itself.

    >>> list(defaults_of("reward", {"defaults": ["/schema/reward@_here_", {"/zero@zero": "none"}, "_self_"]}))
    [('schema', 'reward', ''), ('zero', 'none', 'zero')]
    """
    for entry in node.get("defaults", []):
        if entry != "_self_":
            key, choice = next(iter(entry.items())) if isinstance(entry, dict) else (entry, None)
            place, _, package = key.removeprefix("override ").partition("@")
            home, name = place[1:] if place.startswith("/") else f"{group}/{place}", choice
            if isinstance(entry, str):
                home, _, name = home.rpartition("/")
            yield home, name, "" if package == "_here_" else package


def first_comment(file: Path) -> str:
    """The first comment of a yaml that is no Hydra directive."""
    lines = (line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    comment = next((line.lstrip("# ") for line in lines if "@package" not in line), "")
    return re.sub(r"^[A-Za-z]+: ", "", comment)


def print_plugins(words: list[str]) -> None:
    """A line for each plug, or for each of one group: what is typed, where it comes from, what it is."""
    found = sorted(plugs())
    groups = sorted({group for group, *_ in found})
    if len(words) > 1 or (words and words[0] not in groups):
        raise AlignError(f"align plugins {' '.join(words)}: there is no such group\n  one of: {', '.join(groups)}")
    rows = [(f"{group}={name}", source, text) for group, name, source, text in found if group in (words or groups)]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for choice, source, text in rows:
        print(f"{choice:{first}}  {source:{second}}  {text}")
