"""A plug that is chosen on the command line has its own settings, and none that an experiment sets for another."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from align.cli.compose import composed
from align.cli.plugins import plugs

MINI = """# @package _global_
defaults:
  - override /reward: fn
  - override /peft@sft.peft: lora
  - override /advantage: gae
stages: [sft, ppo]
reward: {fn: my_rewards.short, args: {limit: 3}}
advantage: {lam: 0.9}
sft: {peft: {r: 3}, epochs: 2}
rollout: {max_new_tokens: 7}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mini.yaml").write_text(MINI)
    (tmp_path / "conf" / "experiment" / "more.yaml").write_text(
        "# @package _global_\ndefaults:\n  - mini\n  - _self_\nsft: {epochs: 3}\n"
    )
    monkeypatch.chdir(tmp_path)


def section(words: str, name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.select(composed(words.split())[0], name), resolve=False)


@pytest.mark.parametrize("experiment", ["mini", "more"])
def test_a_reward_that_is_typed_has_nothing_of_the_experiments(experiment):
    alone = section("stages=[ppo] reward=kind_words", "reward")
    assert alone["fn"] == "kind_words.kind_words" and "limit" not in alone["args"]
    assert section(f"experiment={experiment} reward=kind_words", "reward") == alone
    model = section("stages=[ppo] reward=model", "reward")
    assert section(f"experiment={experiment} reward=model", "reward") == model


def test_what_is_typed_below_it_stays():
    words = "experiment=mini reward=kind_words reward.args.maximum=0.3 peft@sft.peft=dora sft.peft.r=5"
    args = section(words, "reward.args")
    assert args["maximum"] == 0.3 and len(args["words"]) > 5
    assert section(words, "sft.peft") == {**section("stages=[sft] peft@sft.peft=dora", "sft.peft"), "r": 5}


def test_the_experiments_choice_keeps_its_settings():
    assert section("experiment=mini reward=fn", "reward") == section("experiment=mini", "reward")
    assert section("experiment=mini peft@sft.peft=lora", "sft.peft")["r"] == 3
    assert section("experiment=mini advantage=gae", "advantage")["lam"] == 0.9
    assert "lam" not in section("experiment=mini advantage=rloo rollout.samples_per_prompt=2", "advantage")


def test_settings_of_a_section_stand_for_all_its_choices():
    """Engines of rollouts share max_new_tokens: it is no setting of one of them."""
    assert section("experiment=mini rollout=hf", "rollout")["max_new_tokens"] == 7
    assert section("experiment=mini peft@sft.peft=none", "sft")["epochs"] == 2


GROUPS = [
    "reward",
    "peft@sft.peft",
    "peft@actor.peft",
    "data@sft.data",
    "data@ppo.data",
    "zero@actor.zero",
    "advantage",
]


def as_alone(experiment: str, key: str) -> None:
    """Compare every choice of a group in an experiment with the same choice without it."""
    group, _, place = key.partition("@")
    place = place or group
    chosen = composed([f"experiment={experiment}"])[1].get(key)
    for name in [name for one, name, *_ in plugs() if one == group and name not in ("none", chosen)]:
        words = f"stages=[sft,rm,ppo] {key}={name}"
        assert section(f"experiment={experiment} {words}", place) == section(words, place), name


@pytest.mark.parametrize("key", ["reward", "advantage", "zero@actor.zero"])
def test_every_choice_is_that_of_the_plug_alone(key):
    as_alone("mini", key)


@pytest.mark.long
@pytest.mark.parametrize("key", GROUPS)
@pytest.mark.parametrize("experiment", ["tiny", "tiny_sampled", "hh_rlhf", "mini"])
def test_every_choice_in_every_experiment_is_that_of_the_plug_alone(experiment, key):
    as_alone(experiment, key)
