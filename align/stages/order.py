"""The order in which the stages of a run come, and what to write for a name that is no stage. No torch at import."""

from __future__ import annotations

import difflib
from typing import Any

from align.errors import AlignError
from align.stages.pipeline import LATER, STAGES

METHODS = {
    "ipo": "IPO is a loss of dpo\n  write stages=[dpo] dpo.loss=ipo",
    "simpo": "TRL has SimPO among what it calls experimental, and align does not\n"
    "  nearest: stages=[dpo] dpo.loss=sigmoid_norm, by the length of each answer, too, but with a reference",
    "orpo": "TRL has ORPO among what it calls experimental, and align does not\n"
    "  nearest: stages=[dpo] dpo.loss=[sigmoid,sft], learning the chosen answer, too, but with a reference",
}
"""Methods by preferences that are no stage: what to write."""


def order(stages: Any, judged: bool, rm_sampled: bool = False) -> list[str]:
    """The stages in the order in which they run; evaluation closes a run that has a policy to judge.

    `stages` is a list of names, or one name; with `rm_sampled` the reward model learns from sampled preferences.
    """
    given = [stages] if isinstance(stages, str) else stages
    example = "write some of " + ", ".join(STAGES) + ", such as stages=[sft,rm]"
    if not isinstance(given, list) or not given:
        raise AlignError(f"stages={stages}: {example}")
    for name in given:
        if name in METHODS:
            raise AlignError(f"stages: there is no stage {name}: {METHODS[name]}")
        if name not in STAGES:
            near = difflib.get_close_matches(str(name), STAGES, n=1, cutoff=0.4)
            hint = f"; nearest: {near[0]}" if near else ""
            raise AlignError(f"stages: there is no stage {name}{hint}\n  {example}")
        if given.count(name) > 1:
            raise AlignError(f"stages=[{','.join(given)}] names {name} twice\n  write it once")
    chosen = [stage for stage in STAGES if stage in given]
    if rm_sampled and {"rm", "preferences"} <= set(chosen):
        chosen.remove("rm")
        chosen.insert(chosen.index("preferences") + 1, "rm")
    if "evaluate" not in chosen and ("ppo" in chosen or (judged and {"sft", *LATER} & set(chosen))):
        chosen.append("evaluate")
    return chosen


def reordered(named: list[str], stages: list[str]) -> str:
    """A line for the terminal where `named` stages run in another order, that of `stages`; else ''."""
    run = [stage for stage in stages if stage in named]
    if run == named:
        return ""
    return (
        f"stages run as {' → '.join(run)}: a pipeline has one order; for another, run stages one after the other, "
        "actor.path=runs/NAME/latest/STAGE"
    )
