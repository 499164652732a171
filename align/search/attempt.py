"""One trial of a search: drawn, run, watched, told to the study."""

from __future__ import annotations

import math

import optuna
from optuna.trial import TrialState

from align.config.choices import MEASURED
from align.errors import AlignError
from align.search.process import Run, started
from align.search.search import CPU_LINEAR, Search
from align.search.study import counted, sampler
from align.search.telling import Telling
from align.search.watch import Watch
from align.stages.pipeline import write_end
from align.tables.figures import read_json
from align.tables.runs import stages_of


def attempt(found: Search, study: optuna.Study, run: Run, telling: Telling) -> None:
    """One trial, from the sampler's word to the study's; what becomes of it does not end the search.

    But for an objective that runs do not have: raises AlignError after the first that comes to its end.
    """
    study.sampler = sampler(found.plan, found.seed, len(counted(study)))
    trial = study.ask()
    words = found.trials.suggest(trial)
    trial.set_user_attr("words", words)
    telling.begin(trial.number, words)
    missing: AlignError | None = None
    state, value, reason = carry_out(found, trial, words, run)
    if state == TrialState.COMPLETE:
        try:
            value = found.wanted.value(found.folder(trial.number) / "latest")
            if not math.isfinite(value):
                state, value, reason = TrialState.FAIL, None, f"{found.wanted.figure} is {value}"
        except AlignError as error:
            missing, state, reason = error, TrialState.FAIL, str(error)
    trial.set_user_attr("reason", reason)
    study.tell(trial, value, state)
    keep_kernel(found, study, trial.number)
    telling.end(study.trials[trial.number])
    if missing and not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise missing


def carry_out(found: Search, trial: optuna.Trial, words: list[str], run: Run) -> tuple[TrialState, None, str]:
    """Runs a trial, and ends it where the pruner says so: its state and, where it has no value, why."""
    folder = found.folder(trial.number)
    folder.mkdir(exist_ok=True)
    watch = Watch(found.wanted, folder)

    def poor() -> str:
        """Reports what is new; why the pruner has seen enough, '' where it has not."""
        why = ""
        for number, value in watch.new():
            trial.report(value, number)
            if not why and trial.should_prune():
                why = f"evaluation {number}: {watch.name} {value:.4g}"
        return why

    kernel = trial.study.user_attrs.get(CPU_LINEAR)
    with started(run, found.words(words, trial.number, kernel), folder / "log.txt") as running:
        while not running.ended():
            if reason := poor():
                running.stop()
                write_end((folder / "latest").resolve(), found.wanted.stage, "pruned", reason)
                return TrialState.PRUNED, None, reason
        failure = running.failure()
    poor()  # what came last, for the trials after it to be compared with
    return (TrialState.FAIL, None, failure) if failure is not None else (TrialState.COMPLETE, None, "")


def keep_kernel(found: Search, study: optuna.Study, number: int) -> None:
    """What `cpu_linear=auto` measured in the first trial is every trial's: two kernels round differently."""
    if not found.one_kernel or CPU_LINEAR in study.user_attrs:
        return
    run = found.folder(number) / "latest"
    for stage in stages_of(run.resolve()) if run.exists() else []:
        chosen = read_json(run / stage / "card.json").get("cpu_linear", {})
        if chosen.get("from") == MEASURED:
            study.set_user_attr(CPU_LINEAR, chosen["kind"])
            return
