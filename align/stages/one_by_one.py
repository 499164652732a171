"""Reward models of one lesson by several seeds, one after the other: the members of an ensemble.

Coste et al. 2023 (arXiv 2310.02743) have members that differ by their seed alone, as these do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.report.report import StageReport
from align.stages.reward_report import too_few

FIGURES = ("eval_accuracy", "eval_margin", "swap_accuracy", "eval_rating_correlation")


def train_members(
    members: int, seed: int, out: Path, report: StageReport, train: Callable[[int, Path, Path, StageReport], None]
) -> None:
    """Members in out/member_1, out/member_2, … by `seed` and those after it; the best on held-out pairs in `out`, too.

    `train(seed, folder, home, report)` makes one; `home` is where a base is made that they share. Each folder is what a
    run of its own leaves. Without held-out pairs the first counts as the best.
    """
    told: dict[str, dict[str, Any]] = {}
    for number in range(members):
        name = f"member_{number + 1}"
        (out / name).mkdir()
        own = StageReport(f"{report.name}/{name}", out / name, report.run)
        try:
            own.say(f"{number + 1} of {members}, seed {seed + number}")
            own.write_card(seed=seed + number)
            train(seed + number, out / name, out, own)
        finally:
            own.close()
        told[name] = own.card
    best = max(told, key=lambda name: told[name].get("eval_accuracy", 0.0))
    shutil.copytree(out / best, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("trainer", "rest"))
    few = too_few(told[best].get("eval_pairs", 0))
    rank = "counts as" if few else "is"
    report.say(f"{best} {rank} the best and is the stage's result, in {out}; all {members} lie beside it")
    if few:
        report.say(f"warning: {few}")
    kept = ("seed", *FIGURES)
    figures = [{"name": name, **{key: card[key] for key in kept if key in card}} for name, card in told.items()]
    facts = {key: value for key, value in told[best].items() if key not in ("stage", "seed")}
    report.write_card(members=figures, best=best, **facts)
