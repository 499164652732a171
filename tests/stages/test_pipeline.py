"""The thread from end to end on a model made here: what a run leaves, and that others can load it without align."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import stand_in, write_data
from loading import load
from safetensors.torch import load_file

import align
from align.cli.compose import composed, plan_of
from align.errors import AlignError
from align.plan.order import reordered
from align.stages import pipeline

SMALL = [
    "experiment=tiny", "debug=default", "rollout=hf", "pretrain.data.documents=300", "pretrain.batch_size=4",
    "sft.data.demonstrations=64", "rm.data.pairs=64", "sft.data.held_out=32",
    "rm.data.held_out=32", "evaluate.samples=16", "evaluate.show=1",
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
    files = [file for file in run.rglob("*") if file.is_file() and not file.is_symlink() and file.parent != run]
    assert {file.stat().st_mode for file in files} == {(ran[0] / "my_rewards.py").stat().st_mode}
    card = json.loads((run / "ppo" / "card.json").read_text())
    assert Path(card["inputs"]["actor"]) == (run / "sft").resolve()
    assert Path(card["inputs"]["reward"]) == Path(card["inputs"]["critic"]) == (run / "rm").resolve()


@pytest.mark.slow
def test_the_log_has_the_command_the_outline_and_the_lines_of_every_stage(ran):
    run = ran[0] / "runs" / "tiny" / "latest"
    command, *lines = (run / "log.txt").read_text().splitlines()
    assert command == f"$ align {' '.join(SMALL)}"
    heads = [line[:9].strip() for line in lines]
    assert heads[:6] == ["run", "pretrain", "sft", "rm", "ppo", "evaluate"]
    assert {"pretrain", "sft", "rm", "ppo", "evaluate", "done"} <= set(heads[6:])
    outline = ran[1]["outline"]
    assert outline["sft"] == "from pretrain; peft=lora; data=help_desk; 3 steps of 32"
    assert outline["ppo"].startswith("actor from sft, peft=lora; critic from rm, peft=lora; reward from rm; ")
    for stage, line in outline.items():
        assert json.loads((run / stage / "card.json").read_text())["outline"] == line


@pytest.mark.slow
def test_the_evaluations_completions_have_the_scores_of_its_table(ran):
    run = ran[0] / "runs" / "tiny" / "latest" / "evaluate"
    policies = json.loads((run / "card.json").read_text())["policies"]
    rows = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 16
    for policy, figures in policies.items():
        own = [row for row in rows if row["policy"] == policy]
        for name in ("score", "true_score", "true_polite"):
            assert sum(row[name] for row in own) / len(own) == pytest.approx(figures[name], abs=1e-6)
    assert "kl" in policies["ppo"] and "kl" not in policies["sft"], "which is the reference"
    ppo = [json.loads(line) for line in (run.parent / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert ppo[1]["objective/scores"] > ppo[1]["objective/rlhf_reward"], "which pays for missing ends"


@pytest.mark.slow
def test_the_cards_count_the_parameters_that_train(ran):
    """Against the tensors that are saved; the critic's adapter brings the reward model's head along."""
    run = ran[0] / "runs" / "tiny" / "latest"

    def saved(*files: str, but: str = "-") -> int:
        found = [pair for file in files for pair in load_file(run / file).items()]
        return sum(tensor.numel() for name, tensor in found if but not in name)

    def told(stage: str) -> int | dict[str, int]:
        return json.loads((run / stage / "card.json").read_text())["trained_parameters"]

    assert told("sft") == saved("sft/adapter_model.safetensors")
    assert told("rm") == saved("rm/adapter_model.safetensors")
    assert told("ppo") == {
        "actor": saved("ppo/adapter_model.safetensors"),
        "critic": saved("ppo/critic/adapter_model.safetensors", "ppo/critic/value_head.safetensors", but="score"),
    }


@pytest.mark.slow
def test_every_folder_loads_without_align(ran):
    run = (ran[0] / "runs" / "tiny" / "latest").resolve()
    kinds = {"pretrain": "causal", "sft": "causal", "rm": "score", "ppo": "causal", "ppo/best": "causal"}
    words = [f"{run / stage}:{kind}" for stage, kind in kinds.items()]
    script = Path(__file__).parents[1] / "loading.py"
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


def stages(*words: str) -> list[str]:
    """The stages of a run in their order."""
    return [stage.name for stage in plan_of(composed([*words, "model=base"])[0]).stages]


def inputs(*words: str) -> dict[str, dict[str, str]]:
    """What each stage is given: a path, or the stage that makes it."""
    plan = plan_of(composed(list(words))[0])
    return {stage.name: {one.name: one.source or one.path for one in stage.inputs} for stage in plan.stages}


JUDGE = "evaluate.judge=my_rules.true_score"
SAMPLED = "data@rm.data=sampled"
RULE = ("reward@preferences.judge=fn", "preferences.judge.fn=my_rules.score")


def test_stages_run_after_those_whose_result_they_take_and_end_with_an_evaluation():
    assert stages("stages=[ppo,sft]", "reward=fn", "reward.fn=a.b") == ["sft", "ppo", "evaluate"]
    assert stages("stages=[ppo,rm]") == ["rm", "ppo", "evaluate"]
    assert stages("stages=[sft]", JUDGE) == ["sft", "evaluate"]
    assert stages("stages=rm") == ["rm"]
    assert stages("stages=[rm,preferences]", SAMPLED, *RULE) == ["preferences", "rm"]
    assert stages("stages=[preferences,rm]") == ["rm", "preferences"]


def test_stages_that_take_nothing_of_each_other_run_as_typed():
    assert stages("stages=[sft,dpo,kto]") == ["sft", "dpo", "kto"]
    assert stages("stages=[sft,kto,dpo]") == ["sft", "kto", "dpo"]


def test_a_stage_may_stand_twice():
    assert stages("stages=[sft,rm,rm@2]") == ["sft", "rm", "rm@2"]
    assert inputs("stages=[sft,rm,rm@2,ppo]", "model=base")["ppo"]["reward"] == "rm@2"
    twice = inputs("stages=[pretrain,sft,sft@2]", JUDGE)["evaluate"]
    assert twice == {"base": "pretrain", "sft": "sft", "sft@2": "sft@2", "reference": "sft"}
    assert inputs("stages=[sft,dpo,ppo]", "model=base", "reward=fn", "reward.fn=a.b")["evaluate"]["reference"] == "dpo"


@pytest.mark.parametrize("name", ["rm@x", "rm@0", "rm@2@3"])
def test_an_instance_has_a_number(name):
    with pytest.raises(AlignError, match="use rm@2"):
        stages(f"stages=[sft,{name}]")


def test_stages_that_take_each_others_result_are_refused():
    with pytest.raises(AlignError, match="rm and preferences take each other's result"):
        stages("stages=[rm,preferences]", SAMPLED)


def test_another_order_than_the_typed_one_is_told():
    named = ["dpo", "preferences", "best_of"]
    run = stages(f"stages=[{','.join(named)}]", "data@dpo.data=sampled", *RULE)
    assert reordered(named, run).startswith("stages run as preferences → dpo → best_of: ")
    assert reordered(["sft", "ppo"], ["sft", "ppo", "evaluate"]) == ""


def test_what_is_auto_comes_from_the_newest_stage_that_made_it():
    found = inputs("experiment=tiny", "model=base")
    assert found["sft"] == {"path": "pretrain"} and found["rm"] == {"path": "sft"}
    assert found["ppo"] == {"actor": "sft", "critic": "rm", "reward": "rm"}
    assert found["evaluate"] == {
        "base": "pretrain", "sft": "sft", "ppo": "ppo", "rm": "rm", "reference": "sft",
    }  # fmt: skip
    alone = inputs("stages=[ppo]", "model=base", "actor.path=/a", "reward=fn", "reward.fn=a.b")
    assert alone["ppo"] == {"actor": "/a", "critic": "/a"}
    assert alone["evaluate"] == {"base": "base", "sft": "/a", "ppo": "ppo", "reference": "/a"}
    named = inputs("stages=[ppo]", "model=base", "actor.path=/a", "reference.path=/r", "reward=fn", "reward.fn=a.b")
    assert named["evaluate"]["reference"] == named["ppo"]["reference"] == "/r"
    assert inputs("stages=[dpo,ppo]", "model=base", "reward=fn", "reward.fn=a.b")["ppo"]["actor"] == "dpo"


def test_a_run_that_is_interrupted_says_so(tmp_path):
    with pytest.raises(KeyboardInterrupt), pipeline.end_kept(tmp_path, "sft"):
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "ended.json").read_text()) == {"stage": "sft", "how": "stopped", "why": "interrupted"}
