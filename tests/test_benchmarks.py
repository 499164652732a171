"""The benchmark of learning: align's side runs, and the table has the figures of its runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def learning(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learning

    return learning


def start(script: str, *options: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options], capture_output=True, text=True, env=environment
    )


def made_up(side: str, seed: int, score: float, seconds: float) -> dict:
    return {"side": side, "seed": seed, "steps": [{"score": score, "kl": 2.0, "cpu": seconds}] * 12}


@pytest.mark.slow
def test_two_steps_of_aligns_side(base, tmp_path):
    options = "--steps", "2", "--json", str(tmp_path / "run.json"), "--completions", str(tmp_path / "ids.json")
    done = start("learning_align.py", "--model", base, *options)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "run.json").read_text())
    first, second = run["steps"]
    assert run["side"] == "align" and abs(first["kl"]) < 1e-3 < second["kl"]
    assert 0 <= first["score"] <= 10 and first["cpu"] > 0 and first["approx_kl"] > 0
    assert [len(batch) for batch in json.loads((tmp_path / "ids.json").read_text())] == [32, 32]


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    return tmp_path_factory.mktemp("fixtures")


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--work lora_head --linear onednn"])
def test_a_step_of_aligns_side_against_trl(fixtures, tmp_path, options):
    words = [*options.split(), "--steps", "1", "--fixtures", str(fixtures), "--json", str(tmp_path / "run.json")]
    done = start("ppo_step.py", *words)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["system"] == "align" and run["total"] > 0 and run["ratio"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("script", ["learning.py", "learning_align.py"])
def test_a_missing_model_is_told(script, tmp_path):
    done = start(script, "--model", str(tmp_path))
    assert done.returncode == 1 and "no model there\n  use --model FOLDER" in done.stderr


def test_ratios_are_to_trls_run_of_the_same_seed(learning):
    runs = [made_up("trl", 0, 0.5, 2.0), made_up("align", 0, 0.6, 1.0), made_up("trl", 1, 0.7, 1.0)]
    rows = learning.table([*runs, made_up("align", 1, 0.8, 0.8)])
    assert rows[-3:] == [
        "| align | 0 | 0.600 | 0.600 | 2.00 | 0.560 | 12.0 | 0.50 |",
        "| align | 1 | 0.800 | 0.800 | 2.00 | 0.760 | 9.6 | 0.80 |",
        "| align | mean | 0.700 | 0.700 | 2.00 | 0.660 | 10.8 | 0.65 |",
    ]


def test_openings_and_rule_depend_on_seed_and_text_alone(learning):
    stories = learning.stories
    assert stories.openings(0, 1) == stories.openings(0, 1) != stories.openings(1, 1)
    assert stories.rule(["Sams", "", "none here."]) == [5.0, 0.0, 0.0]
