"""A plan is frozen, hashable and equal for equal settings; what the environment holds stays there."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import align.cli.main  # noqa: F401 - registers the search path
from align.build.plugs import peft
from align.cli.compose import as_yaml, composed, plan_of
from align.config.values import Plug, Settings, frozen, plain
from align.errors import AlignError
from align.plan.outline import outline
from align.ppo.options import PPOOptions

TINY = ["experiment=tiny", "debug=default"]


def plan(*words: str):
    return plan_of(composed(list(words))[0])


def test_equal_settings_give_equal_plans_and_others_do_not():
    one, same, other = plan(*TINY), plan(*TINY), plan(*TINY, "actor.peft.r=8")
    assert one == same and hash(one) == hash(same)
    assert other != one and other.stage("sft") == one.stage("sft") and other.stage("ppo") != one.stage("ppo")


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan(*TINY).stage("ppo").options.steps = 3


def test_a_secret_of_the_environment_stands_in_no_plan_and_in_no_file(monkeypatch):
    monkeypatch.setenv("TOKEN", "hunter2")
    words = ["stages=ppo", "model=a", "reward=http", "reward.url=http://a/${oc.env:TOKEN}"]
    words += ["reward.headers.Authorization='Bearer ${oc.env:TOKEN}'"]
    cfg = composed(words)[0]
    assert "hunter2" not in repr(plan_of(cfg)) + as_yaml(cfg)
    assert "${oc.env:TOKEN}" in repr(plan_of(cfg)) and "${oc.env:TOKEN}" in as_yaml(cfg)


def test_a_number_of_the_environment_is_a_number(monkeypatch):
    monkeypatch.setenv("STEPS", "7")
    assert plan(*TINY, "ppo.steps=${oc.env:STEPS}").stage("ppo").options.steps == 7
    monkeypatch.setenv("STEPS", "many")
    with pytest.raises(AlignError, match=r"ppo\.steps=many: use a whole number from 1"):
        plan(*TINY, "ppo.steps=${oc.env:STEPS}")


@pytest.mark.parametrize(("key", "number"), [("seed", 3), ("ppo.kl_coef", 0.1), ("reward.timeout", 9)])
def test_a_number_in_quotes_is_a_number(key, number):
    words = [*TINY, "reward=http", "reward.url=http://a/b", f"{key}='{number}'"]
    found = plan(*words)
    stage = found.stage("ppo")
    places = {"seed": found.seed, "ppo.kl_coef": stage.options.kl_coef}
    assert places.get(key, stage.sections.reward.get("timeout")) == number


def test_an_argument_of_a_plug_is_read_from_the_environment_as_its_type(monkeypatch):
    monkeypatch.setenv("RANK", "4")
    assert peft(plan(*TINY, "actor.peft.r=${oc.env:RANK}").stage("ppo").sections.actor.options.peft).r == 4
    monkeypatch.setenv("RANK", "four")
    with pytest.raises(AlignError, match=r"actor\.peft\.r=four: use a whole number"):
        peft(plan(*TINY, "actor.peft.r=${oc.env:RANK}").stage("ppo").sections.actor.options.peft)


def test_settings_of_another_library_are_no_value():
    with pytest.raises(AlignError, match=r"sft\.args=3: use settings, a key each"):
        plan(*TINY, "sft.args=3")


def test_a_constraint_holds_for_python_alike():
    with pytest.raises(AlignError, match=r"ppo\.steps=0: use a whole number from 1"):
        PPOOptions(steps=0)
    with pytest.raises(AlignError, match=r"ppo\.kl_in=los: use one of reward, loss\n  nearest: loss"):
        PPOOptions(kl_in="los")
    with pytest.raises(AlignError, match=r"ppo\.whiten_rewards=maybe: use true or false"):
        PPOOptions(whiten_rewards="maybe")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_frozen_thaws_to_the_same(value):
    assert plain(frozen(value)) == value
    hash(frozen(value))


def test_a_plug_is_equal_wherever_it_stands():
    one, other = frozen({"_target_": "a.B", "x": [1]}, "reward"), frozen({"_target_": "a.B", "x": [1]}, "watch.judge")
    assert one == other == Plug("a.B", Settings.of({"x": [1]})) and (one.key, other.key) == ("reward", "watch.judge")


def test_the_outline_says_what_each_stage_takes_and_how_it_trains():
    words = [
        "experiment=tiny", "stages=[sft,rm,ppo]", "model=/m", "reward=sum", "+reward@reward.terms.rm=model",
        "+reward@reward.terms.short=fn", "reward.terms.short.fn=a.b", "reference.path=/r", "peft@actor.peft=none",
        "data@sft.data=prompt_completion", "sft.data.path=demos.jsonl", "sft.args.max_steps=5", "rollout=hf",
    ]  # fmt: skip
    cfg, choices = composed(words)
    assert outline(plan_of(cfg), choices) == {
        "sft": "from /m; peft=lora; data=prompt_completion demos.jsonl; 5 steps of 32",
        "rm": "from sft; peft=lora; data=help_desk; 2 x the data, in batches of 32",
        "ppo": "actor from sft, peft=none; reference from /r; critic from rm, peft=lora; reward from rm; "
        "reward=sum of rm=model, short=fn a.b; advantage=gae policy_loss=clip rollout=hf; data=help_desk; "
        "40 steps of 64",
        "evaluate": "base from /m; sft; ppo; reference from /r; rm; reward=sum of rm=model, short=fn a.b; "
        "judge=help_desk.rule.true_score",
    }
