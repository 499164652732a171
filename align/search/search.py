"""All that the trials of a search have in common."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.search.objective import Objective
from align.search.plan import Plan
from align.search.trials import Trials

CPU_LINEAR = "cpu_linear"


@dataclass
class Search:
    plan: Plan
    trials: Trials
    wanted: Objective
    home: Path
    extra: list[str]
    """Words that the search adds to those that were typed."""
    seed: int
    """The sampler's."""
    unpruned: str
    """Why trials cannot be pruned; '' where they can."""
    asked: dict[str, Any]
    """What makes it this search, and no other: objective, spaces, settings."""
    one_kernel: bool
    """cpu_linear is left to the search."""

    def folder(self, number: int) -> Path:
        return self.home / f"trial_{number}"

    def words(self, own: list[str], number: int, kernel: str | None) -> list[str]:
        """A trial's whole command."""
        fixed = [word for word in self.plan.fixed if not word.startswith("runs=")]
        place = str(self.home).replace("\\", "\\\\").replace("'", "\\'")
        chosen = [f"{CPU_LINEAR}={kernel}"] if kernel else []
        return [*fixed, *self.extra, *chosen, *own, f"runs='{place}'", f"name={self.folder(number).name}"]

    def line(self, own: list[str]) -> str:
        """A trial as a command to paste, without what the search added."""
        return shlex.join(["align", *self.plan.fixed, *own])
