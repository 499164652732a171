"""The search on disk: Optuna's study in `runs/NAME/search.db`, one process at a time, taken up where it was left.

What a sampler draws for a trial depends on the seed, the trial's number and what earlier trials gave, so that a search
that was stopped goes on as it would have gone.
"""

from __future__ import annotations

import fcntl
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from align.errors import AlignError
from align.installed import installed
from align.search.plan import Plan

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

WARM_UP = 2
"""The evaluation of a trial after which the median may prune it."""
LEFT = "left"
"""Attribute of the study: numbers of trials that were under way when the search was stopped."""

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@contextmanager
def held(home: Path) -> Iterator[None]:
    """The search's folder, for this process alone until it ends. Raises AlignError where another has it."""
    lying = {child.name for child in home.iterdir()} if home.is_dir() else set()
    if lying - {"search.lock"} and "search.db" not in lying:
        raise AlignError(f"search: {home} holds runs already, and no search\n  write name=NAME for this one")
    home.mkdir(parents=True, exist_ok=True)
    with (home / "search.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlignError(f"search: another process searches in {home}\n  wait for it, or write name=NAME") from None
        yield


def opened(home: Path, direction: str, asked: dict[str, Any]) -> optuna.Study:
    """The study, new or as it was left; trials that were under way then are put in line again.

    `asked` is all that its trials have in common: spaces, settings, objective. Raises AlignError where that has
    changed since a trial gave a value.
    """
    storage = f"sqlite:///{home / 'search.db'}"
    names = [one.study_name for one in optuna.get_all_study_summaries(storage)]
    if names:
        study = optuna.load_study(study_name=names[0], storage=storage)
        before = study.user_attrs.get("asked", {})
        if before != asked:
            if any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials):
                raise AlignError(f"search: {home} is another search: {_changes(before, asked)}\n  write name=NAME")
            optuna.delete_study(study_name=names[0], storage=storage)
            names = []
    if not names:
        study = optuna.create_study(study_name="search", storage=storage, direction=direction)
        study.set_user_attr("asked", asked)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        tell_left(study, trial)
    return study


def tell_left(study: optuna.Study, trial: FrozenTrial) -> None:
    """Marks a trial that was under way as failed, and puts one with its settings in line."""
    left = study.user_attrs.get(LEFT, [])
    if trial.number not in left:
        study.enqueue_trial(trial.params)
        study.set_user_attr(LEFT, [*left, trial.number])
    study.tell(trial.number, state=TrialState.FAIL)


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that came to an end, of whatever kind."""
    left = study.user_attrs.get(LEFT, [])
    return [trial for trial in study.trials if trial.state.is_finished() and trial.number not in left]


def sampler(plan: Plan, seed: int, number: int) -> BaseSampler:
    """The sampler for one trial."""
    own = random.Random(f"{seed}/{number}").getrandbits(32)
    if plan.sampler == "random":
        return optuna.samplers.RandomSampler(seed=own)
    if plan.sampler == "gp":
        return optuna.samplers.GPSampler(seed=own)
    return optuna.samplers.TPESampler(seed=own)


def check_sampler(plan: Plan) -> None:
    """Raises AlignError where a package that the sampler needs is not installed."""
    if plan.sampler == "gp" and not installed("scipy"):
        raise AlignError("search: sampler=gp: scipy is not installed\n  pip install scipy, or write sampler=tpe")


def pruner(plan: Plan) -> BasePruner:
    """By what a trial's evaluations so far are worth; of few trials in all fewer set the measure."""
    if plan.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner()
    if plan.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=max(1, min(5, plan.trials // 4)), n_warmup_steps=WARM_UP)


def importance(study: optuna.Study) -> dict[str, float]:
    """Share of each setting in what makes the best tenth of trials good, by PED-ANOVA (arXiv 2304.10255, 2601.20800).

    {} while fewer than two trials have a value.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few trials, which whoever reads the shares is told, too
        return optuna.importance.get_param_importances(study) if len(done) > 1 else {}


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first of the differences, as `KEY was A and is B`."""
    told = []
    for part in now:
        old, new = before.get(part), now[part]
        if not isinstance(new, dict) or not isinstance(old, dict):
            old, new = {part: old}, {part: new}
        keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
        told += [f"{key} was {old.get(key, 'not there')} and is {new.get(key, 'not there')}" for key in keys]
    return "; ".join(told[:3])
