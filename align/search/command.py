"""`align search experiment=… 'sft.learning_rate=log(1e-5,1e-2)' trials=20`: settings found by trying, on Optuna.

Each trial is a run in a process of its own, in `runs/NAME/trial_N`. The same command goes on where it was stopped.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from align.build.runtime import Build
from align.config.leaves import leaves
from align.installed import require
from align.search.objective import objective
from align.search.plan import read
from align.search.process import Run
from align.search.search import CPU_LINEAR, Search
from align.search.trials import checked
from align.search.watch import on_the_way
from align.stages.pipeline import check_place

UNSEEN = "evaluate.split=eval"
"""Test rows are for the settings that were chosen."""


def search(words: list[str], run: Run) -> None:
    """Does what the words after `align search` say; `run` is the command `run`, called in the trials' processes.

    Raises AlignError, or what Hydra raises, before the first trial; and where no trial gives a value.
    """
    require("optuna", "align search", "align -m with the values themselves, a sweep", extra="search")
    found = planned(words)
    check_place(found.home.parent, found.home.name)

    from align.search.attempt import attempt
    from align.search.study import check_sampler, counted, held, opened, pruner
    from align.search.telling import Telling

    check_sampler(found.plan)
    with held(found.home):
        study = opened(found.home, found.wanted.direction, found.asked)
        study.pruner = pruner(found.plan)
        telling = Telling(found, study)
        telling.start()
        try:
            while len(counted(study)) < found.plan.trials:
                attempt(found, study, run, telling)
        except KeyboardInterrupt:
            telling.say("stopped; the same command goes on from here")
            raise
        telling.finish()


def planned(words: list[str]) -> Search:
    """The search that the words mean, after all that can be known without a model."""
    plan = read(words)
    trials = checked(plan.fixed, plan.spaces)
    cfg = trials.first
    stages = Build(cfg).stages
    searched = [space.name for space in plan.spaces]
    wanted = objective(plan.objective, plan.direction, cfg, stages, searched)
    typed = [*searched, *(word.lstrip("+").partition("=")[0] for word in plan.fixed)]
    extra = [UNSEEN] if "evaluate" in stages and "evaluate.split" not in typed else []
    on_way, unpruned = on_the_way(wanted, cfg, typed) if plan.pruner != "none" else ([], "")
    home = Path(cfg.runs).expanduser() / (plan.name or f"{cfg.name}_search")
    shared = leaves(OmegaConf.to_container(trials.shared, resolve=False))
    asked = {
        "objective": wanted.figure,
        "direction": wanted.direction,
        "spaces": {space.key: space.text for space in plan.spaces},
        "settings": {key: str(value) for key, value in shared if key not in ("name", "runs")},  # where runs go
    }
    return Search(
        plan, trials, wanted, home, extra=[*extra, *on_way], seed=0 if "seed" in searched else cfg.seed,
        unpruned=unpruned, asked=asked, one_kernel=CPU_LINEAR not in typed,
    )  # fmt: skip
