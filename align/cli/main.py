"""The command line: `align [command] [overrides]`. No torch at import.

The first word is a command (default `run`), the rest is Hydra's. An error of Hydra's or align's is a few lines, without
a traceback unless HYDRA_FULL_ERROR=1.
"""

from __future__ import annotations

import difflib
import os
import shlex
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import align
from align.cli.compose import as_yaml, check_composition, plan_of, resolved
from align.cli.errors import message_of
from align.cli.schema import ROOT
from align.errors import AlignError, AlignWarning
from align.library_variables import prepare
from align.plan.order import reordered
from align.plan.outline import outline
from align.secrets import hidden, hide, hide_in, learn, learn_words

COMMANDS = ("run", "plugins", "export")
"""align's own; `plugin_commands` finds the others."""
VALUED = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
VALUED |= {"--experimental-rerun", "--info", "-i"}
"""Flags of Hydra that take the next word."""
PYTHONS = warnings.formatwarning


def main(arguments: list[str] | None = None) -> None:
    """The console script; exits with 1 on bad input."""
    if arguments is None:
        in_utf8()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a run leaves ended.json
    words = sys.argv[1:] if arguments is None else list(arguments)
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    warnings.formatwarning = warning_line
    try:
        run(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("align: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has enough; nothing more may be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        say(error, full)
        sys.exit(1)


def in_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: names, files and tables need it."""
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def warning_line(message: Warning | str, category: type[Warning], *place: Any) -> str:
    """One of align's own in a line, any other as Python prints it."""
    return f"align: warning: {message}\n" if category is AlignWarning else PYTHONS(message, category, *place)


def say(error: Exception, full: bool) -> None:
    """An error on stderr: the few lines that a user needs, or with `full` the traceback."""
    text = "".join(traceback.format_exception(error)) if full else f"{message_of(error)}\n"
    print(hide(text), end="", file=sys.stderr, flush=True)


def run(words: list[str]) -> dict | None:
    """Runs a command and raises what goes wrong; `run` returns the summary of the (last) run."""
    sys.path[:0] = [path for path in user_folders() if path not in sys.path]
    learn_words(words)
    with hidden():
        return _command(words)


def _command(words: list[str]) -> dict | None:
    command, words = (words[0], words[1:]) if words and words[0].isidentifier() else ("run", list(words))
    added = {} if command in COMMANDS else plugin_commands()
    if command == "help" or (command not in added and {"-h", "--help"} & set(words)):
        return _help(command, [word for word in words if not word.startswith("-")])
    if words == ["--version"]:
        print(f"align {align.__version__}")
        return None
    known = [*COMMANDS, *added]
    if command not in known:
        near = difflib.get_close_matches(command, known, n=1)
        hint = f"; nearest: align {near[0]}" if near else ""
        raise AlignError(
            f"there is no command {command}{hint}\n"
            f"  use one of {', '.join(known)}, or settings such as experiment=tiny seed=1 (align --help)"
        )
    prepare()
    if command in added:
        return _loaded(added[command])(words)
    if command == "plugins":
        if words[:1] == ["--explain"]:
            from align.cli.methods import explain

            print(explain(words[1:]))
            return None
        from align.cli.plugins import print_plugins

        print_plugins(words)
        return None
    if command == "export":
        from align.cli.export import export

        export(words)
        return None
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    results: list[dict] = []
    failures: list[tuple[str, Exception]] = []
    with _hydra_around(words):
        _hydra_main(results, failures, full)
    if len(failures) == 1 and not failures[0][0]:
        raise failures[0][1]
    _show_table(results)
    if failures:
        count = f"{len(failures)} of the {len(failures) + len(results)} runs of this sweep failed"
        raise AlignError("\n  ".join([count, *(f"align {words}" for words, _ in failures)])) from failures[-1][1]
    return results[-1] if results else None


def _show_table(results: list[dict]) -> None:
    """Print the runs of a sweep side by side, where the command `table` is installed."""
    if len(results) > 1 and (entry := plugin_commands().get("table")):
        _loaded(entry)([one["run"] for one in results])


def _help(command: str, keys: list[str]) -> None:
    """Print the help of a command, of keys, or, without either, of everything."""
    from align.cli.help import OF_COMMANDS, print_help

    added = plugin_commands()
    named = keys[0] if keys and command in ("run", "help") else command
    if named in OF_COMMANDS:
        print(OF_COMMANDS[named], end="")
    elif named in added:
        _loaded(added[named])(["--help"])
    else:
        print_help(added, keys)


def plugin_commands() -> dict[str, EntryPoint]:
    """The commands of installed plugins by their word: functions of the words behind it, none of them imported.

    One whose module is not there is left out, with a warning; so is one whose word is taken.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group="align.command"), key=lambda entry: entry.name):
        if entry.name in (*COMMANDS, *found):
            problem = "there is another command of this name"
        elif not _is_there(entry.module):
            problem = f"there is no module {entry.module}"
        else:
            found[entry.name] = entry
            continue
        warnings.warn(AlignWarning(f"align {entry.name} of {entry.dist.name} is left out: {problem}"), stacklevel=2)
    return found


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _loaded(entry: EntryPoint) -> Callable[[list[str]], Any]:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise AlignError(f"align {entry.name} of {entry.dist.name} cannot be imported: {error}") from error


def flags_first(words: list[str]) -> list[str]:
    """The same words with Hydra's flags in front: it refuses settings on either side of a flag."""
    flags, settings = [], []
    rest = iter(words)
    for word in rest:
        if word.startswith("-"):
            flags += [word, *([next(rest)] if word in VALUED and _takes_next(word, words) else [])]
        else:
            settings.append(word)
    return [*flags, *settings]


def _takes_next(flag: str, words: list[str]) -> bool:
    """Return True where a value follows `flag`; `--info` may stand alone, too."""
    after = words[words.index(flag) + 1 :]
    return bool(after) and not (flag in ("--info", "-i") and "=" in after[0])


@contextmanager
def _hydra_around(words: list[str]) -> Iterator[None]:
    """The process as Hydra's main needs it: its arguments, a folder that a sweep may litter, errors that come to us."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    try:
        with tempfile.TemporaryDirectory() as litter, check_composition():
            os.environ |= {"HYDRA_FULL_ERROR": "1", "ALIGN_SWEEP_FOLDER": litter}
            sys.argv = ["align", *flags_first(words)]
            yield
    finally:
        sys.argv = argv
        os.environ.pop("ALIGN_SWEEP_FOLDER", None)
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def _hydra_main(results: list[dict], failures: list[tuple[str, Exception]], full: bool) -> None:
    """Hydra's main; what a job raises is kept, since Hydra would print it in its own way.

    A sweep prints what it starts and what failed at once, and goes on.
    """

    @hydra.main(version_base="1.3", config_path="pkg://align.conf", config_name=ROOT)
    def task(cfg: DictConfig) -> None:
        job = HydraConfig.get()
        words = shlex.join(job.overrides.task) if job.mode == RunMode.MULTIRUN else ""
        if words:
            print(f"run {job.job.num + 1} of the sweep: align {words}", flush=True)
        try:
            results.append(run_pipeline(cfg))
        except Exception as error:
            failures.append((words, error))
            if words:
                say(error, full)

    task()


def run_pipeline(cfg: DictConfig) -> dict:
    """One run of a composed configuration; returns its summary."""
    from align.build.first_checks import check_first
    from align.build.plugs import make
    from align.build.runtime import Runtime
    from align.stages import pipeline

    check_one_process()
    with suppress(OmegaConfBaseException):  # which the plan raises
        learn("", OmegaConf.to_container(cfg, resolve=True))
    plan = plan_of(cfg)
    named = [cfg.stages] if isinstance(cfg.stages, str) else list(cfg.stages)
    if line := reordered(named, [stage.name for stage in plan.stages]):
        print(line, flush=True)
    runtime = Runtime(plan)
    tracker = None if plan.tracker is None else make(plan.tracker)  # refused now, not once the run has a folder

    def make_report(folder: Path) -> Any:
        from align.report.report import Report

        if tracker:
            tracker.start(folder, hide_in(resolved(cfg)))
        job, report = HydraConfig.get(), Report(tracker, folder=folder)
        where = f"{str(runtime.dtype).removeprefix('torch.')} on {runtime.device}"
        report.start(
            shlex.join(["align", *job.overrides.task]),
            f"{', '.join(stage.name for stage in plan.stages)}; seed {plan.seed}, {where}; in {folder}",
            outline(plan, job.runtime.choices),
        )
        return report

    return pipeline.run(
        plan,
        lambda: check_first(plan),
        runtime.stages,
        make_report,
        hide(as_yaml(cfg)),
    )


def check_one_process() -> None:
    """Raise AlignError where a launcher started several processes: each of them would do the whole run."""
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if (size := os.environ.get(name, "")).isdecimal() and int(size) > 1:
            raise AlignError(
                f"{name}={size}: a launcher started {size} processes, and each would do the whole run: align is one "
                "process for now\n  use align …, without torchrun, accelerate launch, deepspeed or mpirun"
            )


def user_folders() -> list[str]:
    """Folders in which users' modules are looked for: the current one, and every folder of ./plugins."""
    here = Path.cwd()
    return [str(here), *sorted(str(p) for p in (here / "plugins").glob("*") if p.is_dir())]
