"""The layers of docs/decisions/0001: imports point down only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "align"
LAYERS = [
    {"ops", "types", "config", "errors", "library_variables", "installed", "imports", "words", "secrets"},
    {"data", "peft"},
    {"engine"},
    {"report"},
    {"roles"},
    {"rollout", "rewards", "advantages", "policy_losses"},
    {"ppo"},
    {"plan"},
    {"stages"},
    {"build"},
    {"cli"},
    {"__init__", "__main__"},
]
SECTIONS = sorted(file for file in PACKAGE.rglob("*.py") if "\n@section(" in file.read_text())
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> set[str]:
    """The parts of align that a file imports, at module level, in a function or for type checking."""
    found = set()
    tree = ast.parse(file.read_text())
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


def modules() -> dict[str, Path]:
    """Every module of align by name."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        name = ".".join(("align", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        found[name] = file
    return found


def test_no_module_imports_itself_through_others():
    """Imports for type checking and those inside functions count."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, file in known.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("align"):
                found |= {f"{node.module}.{one.name}" for one in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                found |= {one.name for one in node.names}
        graph[name] = found & known.keys() - {name, "align"}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


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
    assert not loaded & {"trl", "deepspeed", "vllm", "hydra", "omegaconf", "datasets"}


CLI = ["align", "align.cli.main", "align.build.runtime", "align.config", "align.plan.parse", "align.stages.pipeline"]


@pytest.mark.parametrize("module", [*CLI, "align_runs.table", "align_runs.search"])
def test_the_command_line_imports_no_torch(module):
    assert "torch" not in fresh_modules(f"import {module}")


@pytest.mark.parametrize("file", [*SECTIONS], ids=lambda f: str(f.relative_to(PACKAGE)))
def test_every_setting_has_a_docstring_under_it(file):
    for node in ast.parse(file.read_text()).body:
        if not isinstance(node, ast.ClassDef) or "section" not in ast.dump(ast.Module(node.decorator_list, [])):
            continue
        for field, below in zip(node.body, [*node.body[1:], None]):
            if isinstance(field, ast.AnnAssign):
                told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                assert told, f"{node.name}.{field.target.id}"
