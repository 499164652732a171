"""What a run settled by itself stays with its result: the kernel of linear layers, and the steered KL coefficient."""

import json
from pathlib import Path

import pytest
from command_line import PPO, SFT, stand_in, write_data

import align
from align import ops
from align.engine import linear
from align.stages.fingerprint import measured_linear

RUNS = {
    "ppo": f"{PPO} ppo.steps=2 ppo.batch_size=4 evaluate.samples=2 evaluate.show=0 actor.learning_rate=1e-2",
    "sft": f"{SFT} sft.args.max_steps=4 sft.learning_rate=1e-2",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_data(tmp_path)
    yield from stand_in(tmp_path, monkeypatch)


def run(base: str, stage: str, words: str = "") -> Path:
    """Runs a stage and gives the folder that it left."""
    return Path(align.run(f"{RUNS[stage]} {words}".format(base=base).split())["run"]).resolve() / stage


def chosen(folder: Path) -> dict[str, str]:
    return json.loads((folder / "card.json").read_text())["cpu_linear"]


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stage", RUNS)
def test_a_stage_that_is_run_again_keeps_the_kernel_that_was_measured(here, base, capsys, monkeypatch, stage):
    """To the bit, though the other kernel, which may round differently, is the faster one by then."""
    monkeypatch.setattr(linear, "_share", lambda layers: 0.5)
    first = run(base, stage)
    assert chosen(first) == {"kind": "onednn", "from": "measured"}
    monkeypatch.setattr(linear, "_share", lambda layers: 2.0)
    capsys.readouterr()
    again = run(base, stage)
    card = str(first / "card.json")
    assert chosen(again) == {"kind": "onednn", "from": card}
    assert f"linear layers by onednn, as measured before ({card})" in capsys.readouterr().out
    assert weights(again) == weights(first)
    assert chosen(run(base, stage, "cpu_linear=torch")) == {"kind": "torch", "from": "cpu_linear"}
    assert chosen(run(base, stage)) == {"kind": "onednn", "from": card}, "what the key set is no measurement"
    assert chosen(run(base, stage, "name=another")) == {"kind": "torch", "from": "measured"}


@pytest.mark.slow
def test_going_on_from_a_checkpoint_keeps_the_kernel_that_made_it(here, base, monkeypatch):
    monkeypatch.setattr(linear, "_share", lambda layers: 0.5)
    first = run(base, "ppo", "ppo.save_every=1")
    monkeypatch.setattr(linear, "_share", lambda layers: 2.0)
    then = run(base, "ppo", f"name=another actor.path={first}/checkpoints/step-1")
    assert chosen(then) == {"kind": "onednn", "from": str(first / "card.json")}


def card(folder: Path, stage: str, **facts) -> Path:
    (folder / stage).mkdir(parents=True)
    (folder / stage / "card.json").write_text(json.dumps({"stage": stage, "cpu_linear": facts}))
    return folder / stage / "card.json"


def test_which_card_tells(tmp_path):
    measured = {"kind": "onednn", "from": "measured"}
    old = card(tmp_path / "2001", "sft", **measured)
    new = card(tmp_path / "2002", "sft", **{**measured, "kind": "torch"})
    card(tmp_path / "2003", "ppo", **{**measured, "from": str(old)})
    card(tmp_path / "2004", "ppo", kind="torch", **{"from": "cpu_linear"})
    card(tmp_path / "2005", "ppo", kind="torch", **{"from": "nothing to measure"})
    (card(tmp_path / "2006", "ppo", **measured)).write_text('{"stage": "pp')
    (tmp_path / "latest").symlink_to("2001")
    assert measured_linear(tmp_path, {"sft": None}) == ("torch", str(new))
    assert measured_linear(tmp_path, {"sft": str(old.parent)}) == ("onednn", str(old))
    assert measured_linear(tmp_path, {"ppo": str(old.parent)}) == ("onednn", str(old))  # by the copy
    assert measured_linear(tmp_path, {"rm": None}) is None
    assert measured_linear(tmp_path / "nowhere", {"sft": "org/name"}) is None


@pytest.mark.slow
def test_the_steered_coefficient_is_saved_with_every_policy(here, base):
    """That of the next step: the metrics hold those that the steps used."""
    words = "ppo.kl_target=0.01 ppo.kl_horizon=20 ppo.save_every=1 ppo.eval_every=2 ppo.data.eval_share=0.2"
    folder = run(base, "ppo", words)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steered, expected = ops.AdaptiveKL(0.05, 0.01, 20), [0.05]
    for line in lines[1:]:
        assert line["objective/kl_coef"] == expected[-1]
        expected.append(steered.update(line["objective/kl"], 4))
    assert len(set(expected)) == 3

    def state(place: str) -> dict:
        return json.loads((folder / place / "ppo_state.json").read_text())

    assert state(".") == {"steps": 2, "kl_coef": expected[2]}
    assert state("checkpoints/step-1") == {"steps": 1, "kl_coef": expected[1]}
    assert state("best")["kl_coef"] == expected[state("best")["steps"]]
    assert json.loads((folder / "card.json").read_text())["kl_coef"] == expected[2]
