"""`align search experiment=… 'sft.learning_rate=log(1e-5,1e-2)' trials=20`: the best settings by trying, on Optuna.

Each trial is a run in a process of its own, in `runs/NAME/trial_N`. The same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from align.config.choices import MEASURED
from align.errors import AlignError
from align.installed import require
from align_runs.compose import check_folder, end_run, run
from align_runs.process import Run, started
from align_runs.runs import DONE, cards, figures, stages_of
from align_runs.stages import METRICS
from align_runs.table import nearest
from align_runs.trials import CPU_LINEAR, EXAMPLE, Search, planned

if TYPE_CHECKING:
    import optuna

    from align_runs.progress import Progress

HELP = f"""\
usage: align search SETTINGS SPACES [trials=20] [objective=FIGURE] [name=NAME] …

The best settings by trying many, on Optuna. Each trial is a run in runs/NAME/trial_N.
The same command goes on where it was stopped.

spaces, quoted
  'KEY=log(1e-5,1e-2)'      numbers between both ends, on a logarithmic scale
  'KEY=uniform(0,1)'        numbers between both ends
  'KEY=range(1,8)'          whole numbers, without the 8; range(1,8,2) by steps of 2
  'KEY=choice(4,8,16)'      any of these, of plugs too: 'peft@sft.peft=choice(lora,dora)'

the search's own
  trials=20                 in all, those of an earlier call included
  objective=sft.eval_loss   a figure of align table; by default the held-out score of the last stage that trains
  direction=minimize        or maximize; by default by the figure's name
  name=NAME                 a folder under runs; by default the name of the runs with _search
  sampler=tpe               or random, gp
  pruner=median             ends poor trials early; or hyperband, none

examples
  {EXAMPLE}
"""


def search(words: list[str]) -> None:
    """The best of many runs, by Optuna: 'sft.learning_rate=log(1e-5,1e-2)' 'sft.peft.r=choice(4,8,16)' trials=20"""
    if {"-h", "--help"} & set(words):
        return print(HELP, end="")
    require("optuna", "align search", "align -m with the values themselves, a sweep", extra="search")
    found = planned(words)
    check_folder(found.home)

    from align_runs.progress import Progress
    from align_runs.study import check_sampler, ended, locked, opened, pruner

    check_sampler(found.plan)
    with locked(found.home):
        study = opened(found.home, found.direction, found.identity)
        study.pruner = pruner(found.plan)
        progress = Progress(found, study)
        progress.start()
        try:
            while len(ended(study)) < found.plan.trials:
                attempt(found, study, run, progress)
        except KeyboardInterrupt:
            progress.say("stopped; the same command goes on from here")
            raise
        progress.finish()


def attempt(found: Search, study: optuna.Study, run: Run, progress: Progress) -> None:
    """One trial: drawn, run, recorded in the study. Its failure does not end the search.

    But for an objective that runs do not have: raises AlignError after the first that comes to its end.
    """
    from align_runs.study import STATES, any_done, ended, sampler

    study.sampler = sampler(found.plan, found.seed, len(ended(study)))
    trial = study.ask()
    words = found.trials.suggest(trial)
    trial.set_user_attr("words", words)
    progress.begin(trial.number, words)
    state, reason = carry_out(found, trial, words, run)
    value, missing = None, None
    if state == DONE:
        try:
            value = value_of(found.folder(trial.number) / "latest", found.figure)
            if not math.isfinite(value):
                state, value, reason = "failed", None, f"{found.figure} is {value}"
        except AlignError as error:
            missing, state, reason = error, "failed", str(error)
    trial.set_user_attr("reason", reason)
    study.tell(trial, value, STATES[state])
    keep_kernel(found, study, trial.number)
    progress.end(study.trials[trial.number])
    if missing and not any_done(study):
        raise missing


def carry_out(found: Search, trial: optuna.Trial, words: list[str], run: Run) -> tuple[str, str]:
    """Run a trial, and end it where the pruner says so: how it ended and, unless it is done, why."""
    folder = found.folder(trial.number)
    folder.mkdir(exist_ok=True)
    reported = 0

    def poor() -> str:
        """Report what is new; why the pruner has seen enough, '' where it has not."""
        nonlocal reported
        why = ""
        for name, value in evaluations(folder, found.figure)[reported:]:
            reported += 1
            trial.report(value, reported)
            if not why and trial.should_prune():
                why = f"evaluation {reported}: {name} {value:.4g}"
        return why

    kernel = trial.study.user_attrs.get(CPU_LINEAR)
    with started(run, found.words(words, trial.number, kernel), folder / "log.txt") as running:
        while not running.ended():
            if reason := poor():
                running.stop()
                end_run((folder / "latest").resolve(), found.figure.partition(".")[0], "pruned", reason)
                return "pruned", reason
        failure = running.failure()
    poor()  # the last figures, for later trials to be compared with
    return (DONE, "") if failure is None else ("failed", failure)


def keep_kernel(found: Search, study: optuna.Study, number: int) -> None:
    """The kernel that `cpu_linear=auto` measured in the first trial is every trial's: two kernels round differently."""
    run = found.folder(number) / "latest"
    if not found.one_kernel or CPU_LINEAR in study.user_attrs or not run.exists():
        return
    for card in cards(run, stages_of(run.resolve())).values():
        if card.get(CPU_LINEAR, {}).get("from") == MEASURED:
            study.set_user_attr(CPU_LINEAR, card[CPU_LINEAR]["kind"])
            return


def value_of(run: Path, figure: str) -> float:
    """The figure of a run that came to its end. Raises AlignError where there is none."""
    found = figures(run, stages_of(run))
    if figure not in found:
        near = ", ".join(nearest(figure, list(found)))
        raise AlignError(f"objective={figure}: a run came to its end without this figure. Use one of {near}.")
    return found[figure]


def evaluations(home: Path, figure: str) -> list[tuple[str, float]]:
    """The objective on the way of a trial in `home`, as its stage writes it to metrics.jsonl: (name, value), in order.

    Those before the first step are left out, so that trials whose steps differ in number are compared after equal
    parts of their way. nan is for what was not finite.
    """
    stage, _, last = figure.partition(".")
    names = (last, METRICS.get(last, f"eval/{last}"))
    file = home / "latest" / stage / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    found: dict[int, tuple[str, float]] = {}
    for line in text.rpartition("\n")[0].split("\n"):  # the last line may still be written
        metrics = json.loads(line) if any(f'"{name}"' in line for name in names) else {}
        name = next((name for name in names if name in metrics), None)
        if name is not None and metrics["step"] > 0:
            found.setdefault(metrics["step"], (name, math.nan if metrics[name] is None else metrics[name]))
    return list(found.values())
