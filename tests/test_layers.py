"""The layers of docs/decisions/0001: imports point down only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "align"
LAYERS = [
    {"ops", "types", "config", "errors", "library_variables", "installed", "imports"},
    {"data", "peft"},
    {"engine"},
    {"roles"},
    {"rollout", "rewards", "advantages", "policy_losses", "report"},
    {"ppo"},
    {"stages"},
    {"checks"},
    {"nodes"},
    {"members"},
    {"rewarding"},
    {"longest_prompt"},
    {"preflight"},
    {"answering", "looking"},
    {"build"},
    {"cli"},
    {"__init__", "__main__"},
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> set[str]:
    """The parts of align that a file imports, at module level or in a function; not for type checking only."""
    found = set()
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "align":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {name.name for name in node.names}
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for part in imports(file):
        assert HEIGHT[part] <= HEIGHT[own], f"{own} imports {part}"


def test_aligns_own_commands_are_all_that_knows_the_runs_plugin():
    """It is found by its entry points, as a third party's commands are."""
    for file in PACKAGE.rglob("*.py"):
        assert "align_runs" not in file.read_text(), file


def fresh_modules(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_the_ppo_stage_needs_only_torch_transformers_and_peft():
    loaded = fresh_modules("import align.ppo.step")
    assert "torch" in loaded
    assert not loaded & {"trl", "deepspeed", "vllm", "hydra", "datasets"}


CLI = ["align", "align.cli.main", "align.build.runtime", "align.config", "align.stages.pipeline"]


@pytest.mark.parametrize("module", [*CLI, "align_runs.table", "align_runs.search"])
def test_the_command_line_imports_no_torch(module):
    assert "torch" not in fresh_modules(f"import {module}")


@pytest.mark.parametrize("file", sorted((PACKAGE / "config").glob("*.py")), ids=lambda f: f.stem)
def test_every_option_has_a_docstring_under_it(file):
    for node in ast.parse(file.read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, [*node.body[1:], None]):
            if isinstance(field, ast.AnnAssign) and field.target.id != "_target_":
                told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                assert told, f"{node.name}.{field.target.id}"
