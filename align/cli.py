"""The command line: `align [command] [overrides]`. No torch at import.

The first word is a command (default `run`), the rest is Hydra's. What Hydra or align refuses is said in a
few lines, without a traceback unless HYDRA_FULL_ERROR=1.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from align import config
from align.composing import AlignSearchPath, check_composition
from align.errors import AlignError
from align.explain import explain
from align.surroundings import prepare

COMMANDS = ("run", "plugins")

for _name, _node in config.SCHEMAS.items():
    _group = "stage" if _name in ("pretrain", "sft", "rm", "ppo", "evaluate") else "schema"
    ConfigStore.instance().store(group=_group, name=_name, node=_node, provider="align")
Plugins.instance().register(AlignSearchPath)


def main(arguments: list[str] | None = None) -> None:
    """The console script; exits with 1 on bad input."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        run(words)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    except Exception as error:
        if traceback_wanted:
            traceback.print_exc()
        else:
            print(explain(error), file=sys.stderr)
        sys.exit(1)


def run(words: list[str]) -> dict | None:
    """Runs a command and raises what goes wrong; `run` returns the summary of the (last) run."""
    sys.path[:0] = [path for path in user_folders() if path not in sys.path]
    command = words.pop(0) if words and words[0].isidentifier() else "run"
    if command not in COMMANDS:
        raise AlignError(
            f"unknown command {command!r}: write one of {', '.join(COMMANDS)}, or overrides such as seed=1"
        )
    prepare()
    if command == "plugins":
        from align.plugins import print_plugins

        print_plugins(words)
        return None
    results: list[dict] = []
    failures: list[Exception] = []
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach `main`, which says them shorter than Hydra does
    try:
        with tempfile.TemporaryDirectory() as sweep_folder:
            os.environ["ALIGN_SWEEP_FOLDER"] = sweep_folder
            sys.argv = ["align", *words]
            with check_composition(words):
                _hydra_main(results, failures)
    finally:
        sys.argv = before[0]
        if before[1] is None:
            del os.environ["HYDRA_FULL_ERROR"]
    if failures:
        raise failures[-1]
    return results[-1] if results else None


def _hydra_main(results: list[dict], failures: list[Exception]) -> None:
    """Hydra's main; what a job raises is kept, since Hydra would print it in its own way.

    A sweep goes on after a job that failed, and says so.
    """

    @hydra.main(version_base="1.3", config_path="pkg://align.conf", config_name="config")
    def task(cfg: DictConfig) -> None:
        if failures:
            print(explain(failures[-1]), file=sys.stderr)
        try:
            results.append(run_pipeline(cfg))
        except Exception as error:
            failures.append(error)

    task()


def run_pipeline(cfg: DictConfig) -> dict:
    """One run of a composed configuration; returns its summary."""
    from align.build import Build
    from align.stages import pipeline

    build = Build(cfg)
    return pipeline.run(
        build.stages,
        build.sources(),
        build.stage,
        lambda: pipeline.new_folder(Path(cfg.runs), cfg.name),
        build.report,
        OmegaConf.to_yaml(cfg, resolve=True),
    )


def user_folders() -> list[str]:
    """Where users' own modules are looked for: the folder one stands in, and every folder of ./plugins."""
    here = Path.cwd()
    return [str(here), *sorted(str(p) for p in (here / "plugins").glob("*") if p.is_dir())]
