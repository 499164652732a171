"""What a search says, and search.json and table.md, which tell it afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.text import Text

from align.errors import AlignError
from align.search.search import Search
from align.search.study import LEFT, counted, importance
from align.tables.runs import DONE
from align.tables.show import markdown, terminal, text
from align.tables.table import Row, Table, sort

SHOWN = 10
WORDS = {TrialState.COMPLETE: DONE, TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
AGAIN = "stopped"


class Telling:
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
            f"{plan.trials} trials by {plan.sampler}, seed {search.seed}, in {search.home}; "
            f"{search.wanted.figure} is {search.wanted.direction}d",
            "search",
        )
        for space in plan.spaces:
            self.say(f"{space.name}={space.text}{search.trials.only_with(space)}")
        if search.extra:
            self.say(f"with {' '.join(search.extra)}")
        if search.unpruned:
            self.say(f"nothing is pruned: {search.unpruned}")
        elif plan.pruner != "none":
            self.say(f"poor trials end early: {plan.pruner}")
        if done := len(counted(self.study)):
            self.say(f"{done} trials are done")

    def begin(self, number: int, words: list[str]) -> None:
        self.say(f"{' '.join(words)}", f"trial {number}")

    def end(self, trial: FrozenTrial) -> None:
        """What became of a trial; search.json holds it from now on."""
        figure = self.search.wanted.figure
        if trial.state == TrialState.COMPLETE:
            best = self.study.best_trial
            place = "the best so far"
            if best.number != trial.number:
                place = f"best: {text(best.value)}, trial {best.number}"
            self.say(f"{figure} {text(trial.value)} in {trial.duration.seconds} s; {place}")
        else:
            self.say(f"{WORDS[trial.state]}: {trial.user_attrs['reason']}")
            if trial.state == TrialState.FAIL:
                self.say(f"{self.search.folder(trial.number)}/log.txt")
        self.write()

    def finish(self) -> None:
        """The table, what each setting counts for, and the best as a command. Raises AlignError if there is no best."""
        self.write()
        done = [trial for trial in counted(self.study) if trial.state == TrialState.COMPLETE]
        if not done:
            last = next(trial for trial in reversed(self.study.trials) if "reason" in trial.user_attrs)
            reason = last.user_attrs["reason"].splitlines()[0]
            logs = f"{self.search.home}/trial_N/log.txt"
            raise AlignError(f"search: no trial came to its end; the last: {reason}\n  what each printed: {logs}")
        shown = self.table()
        shown.rows = shown.rows[:SHOWN]
        width = self.console.width if self.console.is_terminal or "COLUMNS" in os.environ else 10_000
        for part in terminal(shown, width):
            self.console.print(part, soft_wrap=False)
        if shares := importance(self.study):
            told = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
            self.say(f"{told}  (share in what sets the best trials apart, by {len(done)} trials)", "weight")
        best = self.study.best_trial
        self.say(f"trial {best.number}, {self.search.wanted.figure} {text(best.value)}", "best")
        self.say(self.search.line(best.user_attrs["words"]))
        self.say(f"{self.search.home}/search.json")

    def table(self) -> Table:
        """All trials, the best first."""
        figure = self.search.wanted.figure
        rows = [self._row(trial) for trial in self.study.trials if trial.state.is_finished()]
        made = Table("trial", [space.name for space in self.search.plan.spaces], [figure, "seconds"], rows)
        sort(made, figure, self.search.wanted.direction == "maximize")
        return made

    def _row(self, trial: FrozenTrial) -> Row:
        found = self.facts(trial)
        state = found["state"] + (f": {found['reason'].splitlines()[0]}" if found["reason"] else "")
        figures = {"seconds": found["seconds"]}
        if trial.state == TrialState.COMPLETE:
            figures[self.search.wanted.figure] = trial.value
        return Row(str(trial.number), state, found["settings"], figures)

    def facts(self, trial: FrozenTrial) -> dict[str, Any]:
        """A trial for search.json."""
        again = trial.number in self.study.user_attrs.get(LEFT, [])
        pairs = [word.lstrip("+").split("=", 1) for word in trial.user_attrs.get("words", [])]
        run = self.search.folder(trial.number) / "latest"
        return {
            "trial": trial.number,
            "state": AGAIN if again else WORDS[trial.state],
            "reason": "the search was stopped; made again" if again else trial.user_attrs.get("reason", ""),
            "value": trial.value if trial.state == TrialState.COMPLETE else None,
            "settings": {name: _number(value) for name, value in pairs},
            "on_the_way": {str(step): value for step, value in trial.intermediate_values.items()},
            "seconds": round(trial.duration.total_seconds(), 1),
            "run": str(run.parent / run.readlink()) if run.is_symlink() else None,
        }

    def write(self) -> None:
        """search.json and table.md, whole at any time."""
        search, study = self.search, self.study
        ended = [self.facts(trial) for trial in study.trials if trial.state.is_finished()]
        done = [trial for trial in ended if trial["value"] is not None]
        best = study.best_trial if done else None
        told = {
            "objective": search.wanted.figure,
            "direction": search.wanted.direction,
            "spaces": search.asked["spaces"],
            "fixed": search.plan.fixed,
            "added": search.extra,
            "sampler": search.plan.sampler,
            "pruner": search.plan.pruner,
            "seed": search.seed,
            "best": best and {**self.facts(best), "command": search.line(best.user_attrs["words"])},
            "importance": importance(study),
            "trials": ended,
        }
        _replace(search.home / "search.json", json.dumps(told, indent=2) + "\n")
        _replace(search.home / "table.md", markdown(self.table()))


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
