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

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from align.errors import AlignError
from align.installed import installed
from align_runs.runs import DONE
from align_runs.trials import Plan

STATES = {DONE: TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
SAMPLERS = {"tpe": TPESampler, "random": RandomSampler, "gp": GPSampler}
WARM_UP = 2
"""The evaluation of a trial after which the median may prune it."""
LEFT = "left"
"""Attribute of the study: numbers of trials that were under way when the search was stopped."""

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """The search's folder, for this process alone until it ends. Raises AlignError where another has it."""
    lying = {child.name for child in home.iterdir()} if home.is_dir() else set()
    if lying - {"search.lock"} and "search.db" not in lying:
        raise AlignError(f"search: {home} holds runs already, and no search. Use name=NAME for this one.")
    home.mkdir(parents=True, exist_ok=True)
    with (home / "search.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlignError(f"search: another process searches in {home}. Wait for it, or use name=NAME.") from None
        yield


def opened(home: Path, direction: str, identity: dict[str, str]) -> optuna.Study:
    """The study, new or as it was left; trials that were under way then are put in line again.

    `identity` is what its trials have in common: spaces, settings, objective. Raises AlignError where that has
    changed since a trial gave a value.
    """
    storage = f"sqlite:///{home / 'search.db'}"
    names = [one.study_name for one in optuna.get_all_study_summaries(storage)]
    if names:
        study = optuna.load_study(study_name=names[0], storage=storage)
        before = study.user_attrs.get("identity", {})
        if before != identity:
            if any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials):
                raise AlignError(f"search: {home} is another search: {_changes(before, identity)}. Use name=NAME.")
            optuna.delete_study(study_name=names[0], storage=storage)
            names = []
    if not names:
        study = optuna.create_study(study_name="search", storage=storage, direction=direction)
        study.set_user_attr("identity", identity)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        left = study.user_attrs.get(LEFT, [])
        if trial.number not in left:
            study.enqueue_trial(trial.params)
            study.set_user_attr(LEFT, [*left, trial.number])
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were carried out to some end, not those that a stop of the search left."""
    left = study.user_attrs.get(LEFT, [])
    return [trial for trial in study.trials if trial.state.is_finished() and trial.number not in left]


def any_done(study: optuna.Study) -> bool:
    return bool(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def sampler(plan: Plan, seed: int, number: int) -> BaseSampler:
    """The sampler for one trial."""
    return SAMPLERS[plan.sampler](seed=random.Random(f"{seed}/{number}").getrandbits(32))


def check_sampler(plan: Plan) -> None:
    """Raises AlignError where a package that the sampler needs is not installed."""
    if plan.sampler == "gp" and not installed("scipy"):
        raise AlignError("sampler=gp: scipy is not installed. Use pip install scipy, or sampler=tpe.")


def pruner(plan: Plan) -> BasePruner:
    """The pruner, which compares a trial's evaluations with those before it; the fewer trials, the sooner."""
    if plan.pruner == "hyperband":
        return HyperbandPruner()
    if plan.pruner == "none":
        return NopPruner()
    return MedianPruner(n_startup_trials=max(1, min(5, plan.trials // 4)), n_warmup_steps=WARM_UP)


def importance(study: optuna.Study) -> dict[str, float]:
    """Share of each setting in what makes the best tenth of trials good, by PED-ANOVA (arXiv 2304.10255, 2601.20800).

    {} while fewer than two trials have a value.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few trials: the line that shows the shares counts them
        return optuna.importance.get_param_importances(study) if len(done) > 1 else {}


def _changes(before: dict[str, str], now: dict[str, str]) -> str:
    """The first of the differences, as `KEY was A and is B`."""
    keys = [key for key in dict.fromkeys([*now, *before]) if before.get(key) != now.get(key)]
    found = [f"{key} was {before.get(key, 'not there')} and is {now.get(key, 'not there')}" for key in keys]
    return "; ".join(found[:3])
