"""`align search experiment=… 'sft.learning_rate=log(1e-5,1e-2)' trials=20`: settings found by trying, on Optuna.

Each trial is a run in a process of its own, in `runs/NAME/trial_N`. The same command goes on where it was stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from align.build import Build
from align.config.choices import MEASURED
from align.errors import AlignError
from align.installed import require
from align.search.objective import Watch, objective, on_the_way
from align.search.plan import Plan, read
from align.search.process import Run, started
from align.search.search import CPU_LINEAR, Search
from align.search.trials import checked
from align.stages.pipeline import check_place, write_end
from align.tables.figures import read_json
from align.tables.runs import stages_of

if TYPE_CHECKING:
    import optuna

UNSEEN = "evaluate.split=eval"
"""Test rows are for the settings that were chosen."""


def search(words: list[str], run: Run) -> None:
    """Does what the words after `align search` say; `run` is the command `run`, called in the trials' processes.

    Raises AlignError, or what Hydra raises, before the first trial; and where no trial gives a value.
    """
    require("optuna", "align search", "align -m with the values themselves, a sweep", extra="search")
    found = planned(words)
    check_place(found.home.parent, found.home.name)

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
    """The search that the words mean, after all that can be known without a model or data."""
    plan = read(words)
    trials = checked(plan.fixed, plan.spaces)
    cfg = trials.first
    stages = Build(cfg).stages
    wanted = objective(plan.objective, plan.direction, cfg, stages)
    typed = [word.lstrip("+").partition("=")[0] for word in plan.fixed]
    typed += [space.name for space in plan.spaces]
    extra = [UNSEEN] if "evaluate" in stages and "evaluate.split" not in typed else []
    on_way, unpruned = on_the_way(wanted, cfg, typed) if plan.pruner != "none" else ([], "")
    home = Path(cfg.runs).expanduser() / (plan.name or f"{cfg.name}_search")
    return Search(
        plan, trials, wanted, home, [*extra, *on_way], 0 if "seed" in _names(plan) else cfg.seed, unpruned,
        {
            "objective": wanted.figure,
            "direction": wanted.direction,
            "spaces": {space.key: space.text for space in plan.spaces},
            "settings": dict(_leaves(trials.shared)),
        },
        "cpu_linear" not in typed,
    )  # fmt: skip


def _names(plan: Plan) -> list[str]:
    return [space.name for space in plan.spaces]


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting as text, but for where runs go."""
    for name, value in OmegaConf.to_container(node, resolve=False).items():
        if isinstance(value, dict) and value:
            yield from _leaves(OmegaConf.create(value), f"{prefix}{name}.")
        elif prefix or name not in ("name", "runs"):
            yield f"{prefix}{name}", str(value)


def attempt(found: Search, study: optuna.Study, run: Run, telling: Any) -> None:
    """One trial, from the sampler's word to the study's; what becomes of it does not end the search.

    But for an objective that runs do not have: raises AlignError after the first that comes to its end.
    """
    from optuna.trial import TrialState

    from align.search.study import counted, sampler

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


def carry_out(found: Search, trial: optuna.Trial, words: list[str], run: Run) -> tuple[Any, None, str]:
    """Runs a trial, and ends it where the pruner says so: its state and, where it has no value, why."""
    from optuna.trial import TrialState

    folder = found.folder(trial.number)
    folder.mkdir(exist_ok=True)
    watch = Watch(found.wanted, folder)

    def poor() -> str:
        """Why the pruner has seen enough; '' where it has not."""
        for number, value in watch.new():
            trial.report(value, number)
            if trial.should_prune():
                return f"evaluation {number}: {watch.name} {value:.4g}"
        return ""

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
