"""The thread from end to end on a model made here: what a run leaves, and that others can load it without align."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import stand_in, write_data
from loading import load

import align
from align.stages import pipeline
from align.stages.order import order, reordered

SMALL = [
    "experiment=tiny", "debug=default", "rollout=hf", "pretrain.data.documents=300", "pretrain.batch_size=4",
    "sft.data.demonstrations=64", "rm.data.pairs=64", "evaluate.samples=16", "evaluate.show=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with one small run in it, and the run's summary."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_data(folder)
    patch = pytest.MonkeyPatch()
    with patch.context() as monkeypatch:
        for home in stand_in(folder, monkeypatch):
            yield home, align.run(SMALL)


@pytest.mark.slow
def test_the_summary_holds_the_figures_of_the_run(ran):
    folder, summary = ran
    run = folder / "runs" / "tiny" / "latest"
    assert json.loads((run / "summary.json").read_text()) == summary
    assert (folder / summary["run"]).resolve() == run.resolve()
    assert set(summary["true_score"]) == {"base", "sft", "ppo"}
    assert all(0 <= score <= 1 for score in summary["true_score"].values())
    assert 0 <= summary["reward_accuracy"] <= 1 and 0 <= summary["swap_accuracy"] <= 1
    assert isinstance(summary["kl"], float) and summary["samples"] == 16
    assert summary["rollout_engine"] == "hf"
    assert set(summary["seconds"]) == {"pretrain", "sft", "rm", "ppo", "evaluate"}


@pytest.mark.slow
def test_every_stage_leaves_its_configuration_card_and_metrics(ran):
    run = ran[0] / "runs" / "tiny" / "latest"
    for stage in ("pretrain", "sft", "rm", "ppo", "evaluate"):
        assert "name: tiny" in (run / stage / "config.yaml").read_text()
        assert json.loads((run / stage / "card.json").read_text())["stage"] == stage
        steps = [json.loads(line)["step"] for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
        assert steps and steps == sorted(steps)
    card = json.loads((run / "ppo" / "card.json").read_text())
    assert Path(card["inputs"]["actor"]) == (run / "sft").resolve()
    assert Path(card["inputs"]["reward"]) == Path(card["inputs"]["critic"]) == (run / "rm").resolve()


@pytest.mark.slow
def test_every_folder_loads_without_align(ran):
    run = (ran[0] / "runs" / "tiny" / "latest").resolve()
    kinds = {"pretrain": "causal", "sft": "causal", "rm": "score", "ppo": "causal", "ppo/best": "causal"}
    words = [f"{run / stage}:{kind}" for stage, kind in kinds.items()]
    script = Path(__file__).with_name("loading.py")
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_ppo_alone_goes_on_from_an_earlier_run(ran):
    folder, first = ran
    summary = align.run(
        [
            *SMALL, "stages=ppo", "actor.path=runs/tiny/latest/sft", "reward=fn", "reward.fn=my_rewards.brevity",
            "ppo.save_every=2", "ppo.eval_every=1", "tracker=tensorboard",
        ]
    )  # fmt: skip
    run = folder / summary["run"]
    assert run != folder / first["run"] and (folder / "runs" / "tiny" / "latest").resolve() == run.resolve()
    assert (folder / first["run"] / "summary.json").exists()
    metrics = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [0, 1, 2, 3] and all("eval/score" in line for line in metrics)
    for place in ("checkpoints/step-2", "best"):
        load(run / "ppo" / place, "causal")
    assert list(run.rglob("events.out.tfevents*"))
    assert set(summary["true_score"]) == {"sft", "ppo"}


def test_runs_in_one_second_get_folders_of_their_own(tmp_path):
    folders = [pipeline.new_folder(tmp_path / "runs", "mine") for _ in range(5)]
    assert len(set(folders)) == 5
    assert (tmp_path / "runs" / "mine" / "latest").resolve() == folders[-1].resolve()


def test_stages_run_in_their_order_and_end_with_an_evaluation():
    assert order(["ppo", "sft"], judged=False) == ["sft", "ppo", "evaluate"]
    assert order(["sft"], judged=True) == ["sft", "evaluate"]
    assert order("rm", judged=True) == ["rm"]


def test_another_order_than_the_typed_one_is_told():
    named = ["dpo", "preferences", "best_of"]
    assert reordered(named, order(named, judged=True)).startswith("stages run as preferences → best_of → dpo: ")
    assert reordered(["sft", "ppo"], order(["sft", "ppo"], judged=True)) == ""
    sampled = ["preferences", "rm"]
    assert reordered(sampled, order(sampled, judged=False, rm_sampled=True)) == ""


def test_what_is_auto_comes_from_the_newest_stage_that_made_it():
    paths = dict.fromkeys(("sft", "rm", "actor", "critic", "reference", "reward"), "auto")
    sources = pipeline.Sources("base", paths, True, True, stages=["pretrain", "sft", "rm", "ppo"])
    assert sources.inputs("ppo", {}) == {}
    made = {"pretrain": "/p", "sft": "/s", "rm": "/r"}
    assert sources.inputs("sft", made) == {"path": "/p"}
    assert sources.inputs("rm", made) == {"path": "/s"}
    assert sources.inputs("ppo", made) == {"actor": "/s", "critic": "/r", "reward": "/r"}
    alone = pipeline.Sources("base", {**paths, "actor": "/a"}, True, False, stages=["ppo"])
    assert alone.inputs("ppo", {}) == {"actor": "/a", "critic": "/a"}
    assert alone.inputs("evaluate", {"ppo": "/x"}) == {"sft": "/a", "ppo": "/x", "base": "base"}
