"""Rewards added up. float32; the numbers are exact in it."""

import math

import pytest
import torch
from test_function_reward import STATE, rollout

from align.errors import AlignError
from align.rewards.function import FunctionReward
from align.rewards.sum import SumReward
from align.types import Scored, Texts

NAN = math.nan
TEXTS = Texts(["p"] * 3, ["a", "b", "c"], [[1]] * 3)


def fixed(*scores, wants=()):
    def reward(rollout, texts, state):
        return Scored(torch.tensor(scores))

    reward.wants = set(wants)
    return reward


def test_terms_add_up_by_weight_and_are_logged_without_it():
    terms = {"rm": fixed(1.0, 2.0, 3.0), "polite": fixed(0.0, 1.0, 2.0)}
    scored = SumReward(terms, {"polite": 0.5})(rollout(3), TEXTS, STATE)
    assert scored.score_B.tolist() == [1.0, 2.5, 4.0]
    assert {name: term.tolist() for name, term in scored.terms.items()} == {
        "rm": [1.0, 2.0, 3.0],
        "polite": [0.0, 1.0, 2.0],
    }


def test_a_term_without_opinion_is_left_out_and_a_row_without_any_is_nan():
    scored = SumReward({"a": fixed(1.0, NAN, NAN), "b": fixed(1.0, 5.0, NAN)}, {"b": 2})(rollout(3), TEXTS, STATE)
    assert scored.score_B[:2].tolist() == [3.0, 10.0] and math.isnan(scored.score_B[2])


def test_a_weight_of_zero_is_still_an_opinion():
    scored = SumReward({"a": fixed(1.0, 2.0, NAN)}, {"a": 0.0})(rollout(3), TEXTS, STATE)
    assert scored.score_B[:2].tolist() == [0.0, 0.0] and math.isnan(scored.score_B[2])


def test_a_sum_wants_what_its_terms_want():
    assert SumReward({"a": fixed(wants=["reward"]), "b": fixed(wants=["logp"])}).wants == {"reward", "logp"}
    assert SumReward({"a": FunctionReward(lambda **kwargs: [])}).wants == set()


def test_a_sum_of_sums_adds_up():
    inner = SumReward({"a": fixed(1.0, 1.0, NAN)}, {"a": 2.0})
    scored = SumReward({"inner": inner, "b": fixed(1.0, 2.0, 3.0)})(rollout(3), TEXTS, STATE)
    assert scored.score_B.tolist() == [3.0, 4.0, 3.0]


def test_a_sum_without_terms_says_how_to_add_one():
    with pytest.raises(AlignError, match=r"\+reward@reward\.terms\.polite=kind_words"):
        SumReward({})


def test_a_weight_without_a_term_is_refused_with_the_nearest():
    with pytest.raises(AlignError, match=r"reward\.weights\.polit has no term.*did you mean polite\?"):
        SumReward({"polite": fixed()}, {"polit": 0.5})
    with pytest.raises(AlignError, match=r"\+reward@reward\.terms\.x=kind_words adds one"):
        SumReward({"polite": fixed()}, {"x": 0.5})
