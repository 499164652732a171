"""The whole demo, on three seeds, against the bar it was made for. Minutes each: `make test-long`."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long


def demo(folder, *overrides: str) -> dict:
    """The summary of a whole run of the tiny experiment, in a process of its own."""
    command = [sys.executable, "-m", "align", "experiment=tiny", *overrides]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "runs" / "tiny" / "latest" / "summary.json").read_text())


def check_bar(summary: dict) -> None:
    score = summary["true_score"]
    assert score["sft"] > score["base"]
    assert score["ppo"] >= score["sft"] + 0.25
    assert score["ppo"] >= 0.75
    assert summary["reward_accuracy"] >= 0.85
    assert 0 <= summary["kl"] < 6
    assert summary["samples"] >= 1024


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_aligns_its_model(seed, tmp_path):
    summary = demo(tmp_path, f"seed={seed}")
    assert summary["rollout_engine"] == "vllm"
    check_bar(summary)


def test_it_learns_as_well_with_transformers_rollouts_and_plain_torch(tmp_path):
    summary = demo(tmp_path, "rollout=hf", "zero@actor.zero=none")
    assert summary["rollout_engine"] == "hf"
    check_bar(summary)
