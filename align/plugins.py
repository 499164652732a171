"""`align plugins`: every plug, its group, where it comes from, its one-line help. Imports none of them."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from align.errors import AlignError

HIDDEN = {"local"}


def plugs() -> list[tuple[str, str, str, str]]:
    """(group, name, source, help) of every yaml on align's search path, its own first."""
    sources = [("align", Path(str(files("align.conf"))))]
    own = Path.cwd() / "conf"
    if own.is_dir() and not (own / "__init__.py").exists():
        sources.append(("./conf", own))
    for entry in sorted(entry_points(group="align.conf"), key=lambda entry: entry.name):
        sources.append((f"{entry.dist.name} {entry.dist.version}", Path(str(files(entry.value)))))
    found = []
    for source, folder in sources:
        for file in sorted(folder.rglob("*.yaml")):
            group = str(file.parent.relative_to(folder))
            if group != "." and group not in HIDDEN:
                found.append((group, file.stem, source, first_comment(file)))
    return found


def first_comment(file: Path) -> str:
    """The first comment of a yaml that is no Hydra directive."""
    lines = (line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    comment = next((line.lstrip("# ") for line in lines if "@package" not in line), "")
    return re.sub(r"^[A-Za-z]+: ", "", comment)


def print_plugins(words: list[str]) -> None:
    """A table of all plugs, or of those of one group."""
    found = plugs()
    groups = sorted({group for group, *_ in found})
    if words and words[0] not in groups:
        raise AlignError(f"align plugins {words[0]}: there is no such group\n  one of: {', '.join(groups)}")
    table = Table("group", "name", "from", "what it is, and how to use it", box=None)
    for group, name, source, text in sorted(found):
        if not words or group == words[0]:
            table.add_row(group, name, source, text)
    Console(highlight=False).print(table)
