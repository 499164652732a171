"""Every method through SFT, reward model and PPO from the command line, three steps a stage, on a random model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from command_line import stand_in
from methods import METHODS, SETTINGS

import align

pytestmark = pytest.mark.slow

SMALL = [
    "experiment=tiny", "debug=default", "stages=[sft,rm,ppo]", "rollout=hf", "rollout.max_new_tokens=8",
    "zero@actor.zero=none", "sft.data.demonstrations=64", "rm.data.pairs=64", "sft.data.held_out=32",
    "rm.data.held_out=32", "sft.batch_size=8", "rm.batch_size=8",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from stand_in(tmp_path, monkeypatch)


def metrics(stage: Path) -> list[dict]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", METHODS)
def test_one_method_in_every_seat(here, base_of, name):
    nodes = ("sft", "rm", "actor", "critic")
    seats = [f"peft@{node}.peft={name}" for node in nodes]
    seats += [f"{node}.peft.{setting}" for node in nodes for setting in SETTINGS.get(name, ())]
    align.run([*SMALL, f"model={base_of(name)}", *seats])
    run = here / "runs" / "tiny" / "latest"
    for stage in ("sft", "rm"):
        assert all(math.isfinite(row["loss"]) for row in metrics(run / stage) if "loss" in row)
    steps = [row for row in metrics(run / "ppo") if "objective/kl" in row]
    assert len(steps) == 3 and abs(steps[0]["objective/kl"]) < 1e-6
    assert all(math.isfinite(row["objective/scores"]) for row in steps)
    assert json.loads((run / "ppo" / "adapter_config.json").read_text())["peft_type"]
    assert "actor: goes on with the adapter" in json.loads((run / "ppo" / "card.json").read_text())["start"][0]
