"""What the documentation says holds: commands compose, links lead somewhere, Python examples and doctests run."""

import ast
import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import answer
from hydra import initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from align.cli.compose import composed, plan_of
from align.cli.main import COMMANDS, VALUED, plugin_commands
from align_runs.trials import planned

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for home in ("docs", "examples", "plugins") for page in (ROOT / home).rglob("*.md"))]
)
YAMLS = sorted(file for home in ("conf", "examples", "plugins") for file in (ROOT / home).rglob("*.yaml"))
PACKAGES = [ROOT / home for home in ("align", "plugins/runs/align_runs", "plugins/help_desk/help_desk")]
MODULES = sorted(file for home in PACKAGES for file in home.rglob("*.py"))
WORDS = (*COMMANDS, *plugin_commands())
STARTS = tuple(f"{name} " for name in ("align", ".venv/bin/align", "python -m align"))


@dataclass(frozen=True)
class Command:
    """A command as somebody would type it, and where it is written."""

    place: str
    folder: Path
    """Where one stands: a page of `examples/` means its own folder, with its `./conf`."""
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: align {' '.join(self.words)}"


def fences(page: Path) -> Iterator[tuple[str, int, list[str]]]:
    """Language, line number and lines of each fenced code block; a line that ends in \\ goes on in the next."""
    language, first, lines = None, 0, []
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if line.strip().startswith("```"):
            if language is not None:
                yield language, first, lines
                language = None
            else:
                language, first, lines = line.strip().strip("`"), number + 1, []
        elif language is not None:
            if lines and lines[-1].endswith("\\"):
                line = lines.pop()[:-1] + line.strip()
            lines.append(line)


def spans(text: str) -> list[str]:
    """What stands between backticks; a command that … shortens is left out."""
    return [span for span in re.findall(r"`([^`]+)`", text) if "…" not in span]


def typed(line: str) -> str | None:
    """The part of a line behind `align `, if it is a command."""
    line = line.strip().removeprefix("$ ")
    return next((line[len(start) :] for start in STARTS if line.startswith(start)), None)


def of_page(page: Path) -> Iterator[Command]:
    place = page.relative_to(ROOT).as_posix()
    folder = page.parent if place.startswith("examples/") else ROOT
    for _, number, lines in fences(page):
        for line in lines:
            if (text := typed(line)) is not None:
                yield Command(f"{place}:{number}", folder, tuple(shlex.split(text, comments=True)))
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        for span in spans(line) if "```" not in line else []:
            if (text := typed(span)) is not None:
                yield Command(f"{place}:{number}", folder, tuple(shlex.split(text)))


def of_yaml(file: Path) -> Iterator[Command]:
    """The command in the comment at a yaml's head: behind a colon, up to the end, two spaces or a bracket."""
    lines = file.read_text().splitlines()
    head = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    place = file.relative_to(ROOT).as_posix()
    folder = file.parents[2] if place.startswith("examples/") else ROOT
    for line in head:
        if found := re.search(r": align (.+?)(?:  | \(|$)", line):
            yield Command(place, folder, tuple(shlex.split(found.group(1))))


def of_module(file: Path) -> Iterator[Command]:
    place = file.relative_to(ROOT).as_posix()
    text = re.sub(r"\\\n\s*", "", ast.get_docstring(ast.parse(file.read_text())) or "")
    for line in [*text.splitlines(), *spans(text)]:
        words = shlex.split(typed(line) or "") if typed(line) else []
        # Prose may begin a line with the project's name.
        known = words and ("=" in words[0] or words[0].startswith("-") or words[0] in WORDS)
        if known and "…" not in line:
            yield Command(place, ROOT, tuple(words))


ALL = list(
    dict.fromkeys(
        command
        for read, files in ((of_page, PAGES), (of_yaml, YAMLS), (of_module, MODULES))
        for file in files
        for command in read(file)
    )
)


def settings(words: list[str]) -> tuple[list[str], bool]:
    """The settings among the words of a command, and whether it is a sweep."""
    found, rest = [], iter(words)
    for word in rest:
        if word in VALUED:
            next(rest, None)
        elif not word.startswith("-"):
            found.append(word)
    return found, bool({"-m", "--multirun"} & set(words))


def jobs(overrides: list[str], sweep: bool) -> list[list[str]]:
    """The settings of each run of a sweep, by Hydra's own sweeper."""
    if not sweep:
        return [overrides]
    with initialize_config_module("align.conf", version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        return BasicSweeper.split_arguments(parser.parse_overrides(overrides), None)[0]


def compose_and_check(words: list[str]) -> None:
    """What the command line does before anything is read: composes, checks values, finds what each stage takes.

    The last where the command says what it runs: a yaml's own command may name the one choice alone.
    """
    overrides, sweep = settings(words)
    GlobalHydra.instance().clear()
    for job in jobs(overrides, sweep):
        runs = any(word.startswith(("experiment=", "stages=")) for word in job)
        plan_of(composed(job if runs else [*job, "model=FOLDER"])[0])


@pytest.mark.parametrize("command", ALL, ids=str)
def test_every_command_that_is_written_down_composes(command, monkeypatch):
    monkeypatch.chdir(command.folder)
    words = list(command.words)
    if words and words[0].isidentifier():
        assert words[0] in WORDS
        if (name := words.pop(0)) == "search" and not {"-h", "--help"} & set(words):
            planned(words)
        if name != "run":
            return
    if not {"-h", "--help", "--version", "--info", "--hydra-help"} & set(words):
        compose_and_check(words)


def test_every_example_of_the_help_composes(capsys):
    lines = [line for line in answer(capsys, "--help").out.splitlines() if line.startswith("  align ")]
    assert lines
    for line in lines:
        words = shlex.split(typed(line))
        if not words[0].isidentifier():
            compose_and_check(words)


def test_commands_are_found_in_pages_yaml_and_modules():
    places = [command.place for command in ALL]
    for start in ("README.md", "examples/rewards/README.md", "plugins/kind_words/README.md", "conf/config.yaml"):
        assert any(place.startswith(start) for place in places), start
    assert "align/stages/sft/stage.py" in places and "plugins/help_desk/help_desk/data.py" in places


@pytest.mark.parametrize("wrong", ["ppo.kl_koef=1", "reward=fnn", "ppo.steps=0", "stages=[sft]", "-m seed=1,-1"])
def test_a_command_that_does_not_hold_is_noticed(wrong):
    with pytest.raises(Exception):  # noqa: B017 - Hydra's, OmegaConf's or our own
        compose_and_check(wrong.split())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert ROOT in (target, *target.parents), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


EXAMPLES = {
    f"{page.relative_to(ROOT).as_posix()}:{number}": lines
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for language, number, lines in fences(page)
    if language == "python"
}
"""Python of the README and of docs, by the place where it stands."""


@pytest.mark.slow
@pytest.mark.parametrize("place", EXAMPLES)
def test_the_python_examples_of_the_documentation_run(place, tmp_path, base):
    made = tmp_path / "runs" / "tiny" / "latest"  # where the demo leaves its models
    made.mkdir(parents=True)
    for stage in ("pretrain", "sft"):
        (made / stage).symlink_to(base)
    script = tmp_path / "example.py"
    script.write_text(textwrap.dedent("\n".join(EXAMPLES[place])))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{place}:\n{done.stderr}"


def test_the_example_of_ppo_without_hydra_is_among_those_that_run():
    assert any("ppo.step(rows)" in "\n".join(lines) for lines in EXAMPLES.values())


@pytest.mark.parametrize("name", ["docs/tutorial.md", "docs/how-to/plugins.md"])
def test_files_that_a_page_shows_compose(name, tmp_path, monkeypatch):
    """Files stand below a line with their path alone; the commands are those at the head of the yaml files."""
    page = ROOT / name
    lines, commands = page.read_text().splitlines(), []
    for _, number, content in fences(page):
        if shown := re.fullmatch(r"`([\w/]+\.(?:yaml|py))`:", lines[number - 4]):
            file = tmp_path / shown.group(1)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(content))
            commands += re.findall(r"^# .*: align (.+)$", "\n".join(content), flags=re.MULTILINE)
    assert commands
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for command in commands:
        compose_and_check(shlex.split(command))


def test_doctests_hold():
    written = [file for file in MODULES if ">>> " in file.read_text()]
    assert written
    for file in written:
        home = next(package.parent for package in PACKAGES if file.is_relative_to(package))
        name = ".".join(file.relative_to(home).with_suffix("").parts).removesuffix(".__init__")
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
        assert result.failed == 0 and result.attempted > 0, name
