"""Mistakes in the yaml files of the folder one stands in: file, line, cause and remedy, once."""

import warnings
from pathlib import Path

import pytest
from command_line import answer, refused, stand_in

HEAD = "# @package _global_\n"
FILES = [
    ("indent", f"{HEAD}ppo:\n  steps: 3\n   epochs: 4\n", ["mine.yaml:4", "mapping values", "same indent"]),
    ("tab", f"{HEAD}ppo:\n\tsteps: 3\n", ["mine.yaml:3", "spaces, not a tab"]),
    ("key twice", f"{HEAD}seed: 3\nseed: 4\n", ["mine.yaml:3", "duplicate key seed", "use the key once"]),
    ("list", f"{HEAD}- seed\n- 4\n", ["mine.yaml", "it is a list", "KEY: VALUE"]),
    ("its group again", f"{HEAD}defaults:\n  - /experiment: tiny\n", ["mine.yaml", "'- /experiment/tiny'"]),
    ("no package", "seed: 7\n", ["experiment", "@package _global_"]),
    ("typo", f"{HEAD}stages: [sft]\nppo:\n  stepps: 4\n", ["ppo.stepps=4", "nearest: ppo.steps"]),
    ("typo of a key", f"{HEAD}sede: 4\n", ["sede=4", "nearest: seed"]),
]  # fmt: skip
STAGES = [
    ("no target", "steps: 3\n", ["conf/stage/mine.yaml", "_target_=null", "use _target_: MODULE.SPEC"]),
    ("target that is not there", "_target_: no_such.SPEC\n", ["mine.yaml", "no_such.SPEC", "cannot be imported"]),
    ("target that is no stage", "_target_: json.loads\n", ["mine.yaml", "json.loads", "no stage of this name"]),
    ("no yaml", "_target_: a: b\n", ["conf/stage/mine.yaml:1", "mapping values"]),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from stand_in(tmp_path, monkeypatch)


def write(folder: Path, group: str, text: str, name: str = "mine") -> Path:
    file = folder / "conf" / group / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


@pytest.mark.parametrize(("text", "words"), [one[1:] for one in FILES], ids=[one[0] for one in FILES])
def test_a_yaml_that_cannot_be_read_is_named_with_line_and_remedy(here, capsys, text, words):
    write(here, "experiment", text)
    refused(capsys, "experiment=mine --cfg job", words)


def test_an_experiment_may_stand_on_another_as_the_remedy_says(here, capsys):
    write(here, "experiment", f"{HEAD}defaults:\n  - /experiment/tiny\n  - _self_\nseed: 7\n")
    said = answer(capsys, "experiment=mine --cfg job")
    assert said.status == 0 and "seed: 7" in said.out and "name: tiny" in said.out


@pytest.mark.parametrize(("text", "words"), [one[1:] for one in STAGES], ids=[one[0] for one in STAGES])
def test_a_broken_stage_is_one_error_and_no_warning(here, capsys, text, words):
    write(here, "stage", text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(capsys, "stages=[mine]", words)


def test_a_stage_that_is_mended_is_read_again(here, capsys):
    file = write(here, "stage", "steps: 3\n")
    refused(capsys, "stages=[mine]", ["_target_"])
    file.unlink()
    refused(capsys, "stages=[mine]", ["there is no stage mine"])


def test_a_clash_of_names_is_for_the_user_to_mend(here, capsys):
    write(here, "reward", "_target_: mine\n", "kind_words")
    words = ["reward=kind_words", "both ./conf and kind_words", "use another name for", "conf/reward/kind_words.yaml"]
    refused(capsys, "reward=kind_words", words)


def test_an_unknown_key_of_a_reward_of_ones_own_is_told_what_it_has(here, capsys):
    write(here, "reward", "_target_: align.rewards.function.FunctionReward\nfn: my.f\nbogus: 3\n")
    said = refused(capsys, "reward=mine", ["reward.bogus=3", "reward.fn, reward.args, reward.name"])
    assert "reward=mine" not in said.err
