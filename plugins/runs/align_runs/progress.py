"""The lines that a search prints, and the files that it keeps beside its study: search.json and table.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.text import Text

from align.errors import AlignError
from align.report.json_text import json_text
from align.words import counted
from align_runs.runs import DONE
from align_runs.show import markdown, terminal, text
from align_runs.study import LEFT, STATES, ended, importance
from align_runs.table import STATE, Table, sort, width_of
from align_runs.trials import Search

SHOWN = 10
STOPPED = "stopped"
NAMES = {state: name for name, state in STATES.items()}


class Progress:
    def __init__(self, search: Search, study: optuna.Study) -> None:
        self.search = search
        self.study = study
        self.console = Console(highlight=False, soft_wrap=True)

    def say(self, line: str, head: str = "") -> None:
        first, *more = line.splitlines()
        self.console.print(Text.assemble((f"{head:>9}", "bold"), "  ", "\n           ".join([first, *more])))

    def start(self) -> None:
        search, plan = self.search, self.search.plan
        self.say(
            f"{counted(plan.trials, 'trial')} by {plan.sampler}, seed {search.seed}, in {search.home}; "
            f"{search.figure} is {search.direction}d",
            "search",
        )
        for space in plan.spaces:
            self.say(f"{space.name}={space.text}{search.trials.only_with(space)}")
        if search.added:
            self.say(f"with {' '.join(search.added)}")
        if search.unpruned:
            self.say(f"nothing is pruned: {search.unpruned}")
        elif plan.pruner != "none":
            self.say(f"poor trials end early: {plan.pruner}")
        if done := len(ended(self.study)):
            self.say(f"{counted(done, 'trial')} done")

    def begin(self, number: int, words: list[str]) -> None:
        self.say(f"{' '.join(words)}", f"trial {number}")

    def end(self, trial: FrozenTrial) -> None:
        """Print how a trial ended, and save it."""
        figure = self.search.figure
        if trial.state == TrialState.COMPLETE:
            best = self.study.best_trial
            place = f"best: {text(best.value)}, trial {best.number}"
            if best.number == trial.number:
                place = "the best so far"
            self.say(f"{figure} {text(trial.value)} in {trial.duration.seconds} s; {place}")
        else:
            self.say(f"{NAMES[trial.state]}: {trial.user_attrs['reason']}")
            if trial.state == TrialState.FAIL:
                self.say(f"{self.search.folder(trial.number)}/log.txt")
        self.save()

    def finish(self) -> None:
        """Print the table, what each setting counts for and the best as a command. Raises AlignError without a best."""
        facts = self.save()
        best, done = facts["best"], [trial for trial in facts["trials"] if trial["state"] == DONE]
        if best is None:
            last = next(trial for trial in reversed(facts["trials"]) if trial["reason"])
            raise AlignError(
                f"search: no trial came to its end; the last: {last['reason'].splitlines()[0]}\n"
                f"  each trial's output: {self.search.home}/trial_N/log.txt"
            )
        shown = self.table(facts["trials"])
        shown.frame = shown.frame.head(SHOWN)
        for part in terminal(shown, width_of(self.console)):
            self.console.print(part, soft_wrap=False)
        if shares := facts["importance"]:
            line = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
            self.say(f"{line}  (share in what sets the best trials apart, by {len(done)} trials)", "weight")
        self.say(f"trial {best['trial']}, {facts['objective']} {text(best['value'])}", "best")
        self.say(best["command"])
        self.say(f"{self.search.home}/search.json")

    def save(self) -> dict[str, Any]:
        """Write search.json and table.md, whole at any time; the contents of search.json."""
        search, study = self.search, self.study
        trials = [self.facts(trial) for trial in study.trials if trial.state.is_finished()]
        best = study.best_trial if any(trial["state"] == DONE for trial in trials) else None
        facts = {
            "objective": search.figure,
            "direction": search.direction,
            "spaces": {space.key: space.text for space in search.plan.spaces},
            "fixed": search.plan.fixed,
            "added": search.added,
            "sampler": search.plan.sampler,
            "pruner": search.plan.pruner,
            "seed": search.seed,
            "best": best and {**self.facts(best), "command": search.command(best.user_attrs["words"])},
            "importance": importance(study),
            "trials": trials,
        }
        _replace(search.home / "search.json", json_text(facts, indent=2) + "\n")
        _replace(search.home / "table.md", markdown(self.table(trials)))
        return facts

    def facts(self, trial: FrozenTrial) -> dict[str, Any]:
        """A trial for search.json."""
        stopped = trial.number in self.study.user_attrs.get(LEFT, [])
        pairs = [word.lstrip("+").split("=", 1) for word in trial.user_attrs.get("words", [])]
        run = self.search.folder(trial.number) / "latest"
        return {
            "trial": trial.number,
            "state": STOPPED if stopped else NAMES[trial.state],
            "reason": "the search was stopped; made again" if stopped else trial.user_attrs.get("reason", ""),
            "value": trial.value if trial.state == TrialState.COMPLETE else None,
            "settings": {name: _number(value) for name, value in pairs},
            "on_the_way": {str(step): value for step, value in trial.intermediate_values.items()},
            "seconds": round(trial.duration.total_seconds(), 1),
            "run": str(run.parent / run.readlink()) if run.is_symlink() else None,
        }

    def table(self, trials: list[dict[str, Any]]) -> Table:
        """A row a trial, the best first."""
        figure, settings = self.search.figure, [space.name for space in self.search.plan.spaces]
        figures = list(dict.fromkeys([figure, "seconds"]))
        rows = [
            {"trial": str(one["trial"]), **one["settings"], "seconds": one["seconds"], figure: one["value"]}
            | {STATE: ": ".join([one["state"], *one["reason"].splitlines()[:1]])}
            for one in trials
        ]
        frame = pd.DataFrame(rows, columns=["trial", *settings, *figures, STATE], dtype=object)
        made = Table("trial", frame, settings, figures)
        sort(made, figure, self.search.direction == "maximize")
        return made


def _replace(file: Path, words: str) -> None:
    fresh = file.with_name(f".{file.name}")
    fresh.write_text(words, encoding="utf-8")
    fresh.replace(file)


def _number(value: str) -> Any:
    """A setting's value as JSON has it, if it is a number."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
