"""The settings in which runs differ, by dotted key; a plug such as a PEFT method is shown by its name."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from align.config.leaves import leaves
from align_runs.compose import plugs
from align_runs.stages import owned, sections

PLACE = ("name", "runs")
"""Settings for the place of a run, which its label shows."""
Settings = dict[str, Any]


def flat(settings: Settings, stages: list[str]) -> Settings:
    """Settings by dotted key, without those of roles and stages that no stage of the run reads.

    A plug, a section with a `_target_`, has an entry under its own key, too: its `Kind`.
    """
    read, some_stage_reads = sections(stages, settings), owned(settings)
    found: Settings = {}
    for name, value in settings.items():
        if name not in PLACE and (name in read or name not in some_stage_reads):
            found |= _flat(value, name)
    return found


def _flat(value: Any, key: str) -> Settings:
    if not isinstance(value, dict):
        return {key: value}
    kind = {key: Kind.of(value)} if "_target_" in value else {}
    return kind | {
        k: v for name, one in value.items() if name != "_target_" for k, v in _flat(one, f"{key}.{name}").items()
    }


@dataclass(frozen=True)
class Kind:
    """The kind of a plug. Plugs that differ in values alone are of one kind."""

    target: str
    names: frozenset[str]
    """Of its arguments, where its class is another library's: `use_dora` makes a DoRA of a LoRA."""
    node: Settings = field(compare=False)

    @classmethod
    def of(cls, node: Settings) -> Kind:
        target = str(node["_target_"])
        return cls(target, frozenset() if target.startswith("align.") else frozenset(node), node)

    def named(self, key: str) -> str:
        """The plug's name: `lora` for `sft.peft`; else that of its class."""
        return plug_name(key.rpartition(".")[2], self.node)


def differing(runs: list[Settings]) -> list[str]:
    """The keys in which flat settings differ, in the order of the first that has each.

    A setting below plugs of several kinds counts where it differs within one of them: rank 8 beside a method without
    a rank says no more than the method's name. A run without a stage does not differ in that stage's settings.
    """
    return [key for key in dict.fromkeys(key for run in runs for key in run) if _differs(key, runs)]


def _differs(key: str, runs: list[Settings]) -> bool:
    owners = [key[:i] for i, letter in enumerate(key) if letter == "."]
    by_owner: dict[tuple, list[Any]] = {}
    for run in [run for run in runs if key in run] if _always_there(key, owners, runs) else runs:
        kinds = tuple(run[owner] for owner in owners if isinstance(run.get(owner), Kind))
        by_owner.setdefault(kinds, []).append(run.get(key))
    return any(value != values[0] for values in by_owner.values() for value in values)


def _always_there(key: str, owners: list[str], runs: list[Settings]) -> bool:
    """A run that lacks the key has no such stage, or is of another version: a root key, a plug, or one of align's."""
    home = [run.get(owners[-1]) for run in runs] if owners else []
    own = any(isinstance(kind, Kind) and kind.target.startswith("align.") for kind in home)
    return not owners or own or any(isinstance(run.get(key), Kind) for run in runs)


def shown(key: str, value: Any) -> Any:
    """A setting's value for a cell: numbers stay numbers, a plug is its name, None is `null`."""
    if isinstance(value, Kind):
        return value.named(key)
    if isinstance(value, list):
        return f"[{','.join(str(shown(key, one)) for one in value)}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return value


def plug_name(group: str, node: Settings) -> str:
    """The choice of a group that a node is most like; its class where the group has none of it.

    A `group` that is none, such as the name of a term, stands for all.
    """
    target, given = str(node["_target_"]), dict(leaves(node))
    best: tuple[int, int, str] | None = None
    for name, plug in _plugs(group, Path.cwd()) or _plugs(None, Path.cwd()):
        if plug.get("_target_") == target and (target.startswith("align.") or set(plug) <= set(given)):
            far = len([key for key in {**plug, **given} if key not in plug or given.get(key) != plug[key]])
            best = min(best or (far, len(name), name), (far, len(name), name))
    return best[2] if best else target.rpartition(".")[2].removesuffix("Config")


@cache
def _plugs(group: str | None, here: Path) -> list[tuple[str, Settings]]:
    """Name and settings by dotted key of every choice of a group, or of all groups, those in `here`/conf included."""
    return [(name, dict(leaves(node))) for name, node in plugs(group)]
