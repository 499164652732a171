"""What is shipped: every folder is a package, and the wheel composes the tiny experiment on its own."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from command_line import leaves

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("hydra", "omegaconf", "antlr4", "packaging", "yaml", "rich", "pygments", "markdown_it", "mdurl")
NEEDED += ("numpy", "numpy.libs", "pandas", "dateutil")
"""What composing and `align table` need beside the wheel; rich and its own needs, since the command line prints."""


def packages() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    return set(re.findall(r'"([\w.]+)"', re.search(r"^packages = \[(.*?)^\]", text, re.S | re.M).group(1)))


def test_every_folder_is_a_package():
    code = {path.parent for path in (ROOT / "align").rglob("*.py")}
    names = {path.relative_to(ROOT).as_posix().replace("/", ".") for path in code}
    conf = {path.parent for path in (ROOT / "conf").rglob("*") if path.suffix in (".yaml", ".py")}
    names |= {"align." + path.relative_to(ROOT).as_posix().replace("/", ".") for path in conf}
    assert packages() == names | {"align_runs", *(name for name in packages() if name.startswith("help_desk"))}
    for folder in conf:
        assert (folder / "__init__.py").exists(), f"{folder} is no package, so its yaml would not be shipped"


@pytest.mark.slow
def test_the_wheel_composes_the_tiny_experiment_alone(tmp_path):
    if find_spec("setuptools") is None:
        pytest.skip("building the wheel without network needs setuptools here")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir",
         str(tmp_path), str(sources(tmp_path / "sources"))],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("align_rlhf-*.whl")
    target = tmp_path / "target"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target),
         str(wheel)],
        check=True,
    )  # fmt: skip
    for name in NEEDED:
        home = Path(find_spec(name.partition(".")[0]).submodule_search_locations[0]).parent
        if (home / name).exists():
            (target / name).symlink_to(home / name)
    command = [sys.executable, "-S", "-m", "align", "experiment=tiny", "--cfg", "job", "--resolve"]
    # -S: without this environment's own packages, its editable align among them
    alone = {"capture_output": True, "text": True, "cwd": tmp_path, "env": {"PYTHONPATH": str(target)}}
    done = subprocess.run(command, **alone)
    assert done.returncode == 0, done.stderr
    cfg = yaml.safe_load(done.stdout)
    assert cfg["name"] == "tiny" and 100 < leaves(cfg) <= 200
    stage = tmp_path / "runs" / "one" / "2026-01-01_00-00-00" / "sft"
    stage.mkdir(parents=True)
    (stage / "config.yaml").write_text(done.stdout)
    (stage / "metrics.jsonl").write_text("")
    (stage / "card.json").write_text('{"eval_loss": 2.5, "hashes": {}}')
    (stage.parent / "summary.json").write_text("{}")
    command = [sys.executable, "-S", "-m", "align", "table", "runs", "--format", "csv"]
    done = subprocess.run(command, **alone)
    assert done.stdout == "run,sft.eval_loss,state\n2026-01-01_00-00-00,2.5,done\n", done.stderr
    where = [sys.executable, "-S", "-c", "import align, align.conf; print(align.__file__, align.conf.__file__)"]
    places = subprocess.run(where, **alone).stdout.split()
    assert len(places) == 2 and all(str(target) in place for place in places)


def sources(folder: Path) -> Path:
    """A copy of what the wheel is made of, so that the build leaves nothing in the repository."""
    folder.mkdir()
    for name in ("align", "conf", "plugins/runs/align_runs", "plugins/help_desk/help_desk"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder
