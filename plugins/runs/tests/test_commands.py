"""Commands of installed distributions: entry points in group align.command."""

import subprocess
import sys

import pytest
from shell import align, refused

HELLO = """import json


def hello(words):
    '''Greet everybody by name: align hello NAMES'''
    print("hello", *words)
"""


@pytest.fixture
def install(here, monkeypatch):
    """install(name, entry, **modules): an installed distribution with one command."""

    def make(name: str, entry: str, **modules: str) -> None:
        facts = here / f"{name}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[align.command]\n{entry}\n")
        for module, text in modules.items():
            (here / f"{module}.py").write_text(text)

    monkeypatch.syspath_prepend(str(here))
    return make


def test_a_distribution_adds_a_command(install, capsys):
    install("greeter", "hello = my_hello:hello", my_hello=HELLO)
    assert align(capsys, "hello Ann Bo").out == "hello Ann Bo\n"
    assert "Greet everybody by name" in align(capsys, "--help").out
    refused(capsys, "helo", ["there is no command helo", "nearest: align hello"])


def test_help_imports_no_module_of_a_command(install, capsys):
    install("greeter", "hello = my_hello:hello", my_hello=HELLO.replace("import json", "import no_such_package"))
    listed = next(line for line in align(capsys, "help").out.splitlines() if line.startswith("align hello"))
    assert listed.split(maxsplit=2)[2] == "Greet everybody by name: align hello NAMES"
    refused(capsys, "hello", ["align hello of greeter cannot be imported", "no_such_package"])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("hello = no_module_here:hello", "there is no module no_module_here"),
        ("hello = no_package.here:hello", "there is no module no_package.here"),
        ("run = my_hello:hello", "there is another command of this name"),
    ],
)
def test_a_command_that_cannot_be_is_left_out_with_a_warning(install, capsys, entry, problem):
    install("greeter", entry, my_hello=HELLO)
    name = entry.partition(" ")[0]
    with pytest.warns(UserWarning, match=f"align {name} of greeter is left out: {problem}"):
        printed = align(capsys, "--help")
    assert printed.status == 0 and "align table" in printed.out and f"align {name}  " not in printed.out


def test_listing_commands_imports_neither_torch_nor_pandas():
    heavy = "{'torch', 'pandas', 'optuna'} & {*sys.modules}"
    code = f"import sys; from align.cli.main import main; main(['--help']); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr
