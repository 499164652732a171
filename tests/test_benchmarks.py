"""Benchmarks run in their short form, and the tables have the figures of their runs."""

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
def test_a_step_of_aligns_side_is_measured(fixtures, tmp_path):
    words = "--size xs --work lora_head --linear onednn --steps 1".split()
    done = start("ppo_step.py", *words, "--fixtures", str(fixtures), "--json", str(tmp_path / "run.json"))
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["system"] == "align" and run["total"] > 0 and run["ratio"] == pytest.approx(1, abs=0.05)


SHORT = {
    "memory": "--size 1m --rows 16 --fixtures {fixtures}",
    "rollouts": "--size 1m --repeats 1 --engines hf --fixtures {fixtures}",
    "growth": "--short --fixtures {fixtures} --out {out}",
    "parallel_adapters": "--size 1m --rows 1 --steps 2 --adapters 2 --fixtures {fixtures} --out {out}",
    "methods": "--short --methods --others houlsby --out {out}",
    "architectures": "--short --out {out}",
    "preference_methods": "--short --methods best_of dpo --out {out}",
    "hacking": "--short --seeds 11 --out {out}",
}


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
def test_short_form(name, fixtures, tmp_path):
    done = start(f"{name}.py", *SHORT[name].format(fixtures=fixtures, out=tmp_path).split())
    assert done.returncode == 0 and done.stdout, done.stderr
    if "{out}" in SHORT[name]:
        (table,) = tmp_path.glob("*.md")
        assert len(table.read_text().splitlines()) >= 3


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
