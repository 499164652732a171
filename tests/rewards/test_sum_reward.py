"""Rewards added up. float32; the numbers are exact in it."""

import math

import pytest
import torch
from test_function_reward import STATE, rollout

from align.rewards.function import FunctionReward
from align.rewards.sum import SumReward
from align.types import RewardState, Scored, Texts

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
    terms = {"a": fixed(1.0, 2.0, NAN), "b": fixed(NAN, NAN, NAN)}
    scored = SumReward(terms, {"a": 0.0})(rollout(3), TEXTS, STATE)
    assert scored.score_B[:2].tolist() == [0.0, 0.0] and math.isnan(scored.score_B[2])


def test_a_sum_wants_what_its_terms_want():
    assert SumReward({"a": fixed(wants=["reward"]), "b": fixed(wants=["logp"])}).wants == {"reward", "logp"}
    assert SumReward({"a": FunctionReward(lambda **kwargs: [])}).wants == set()


def test_a_sum_of_sums_adds_up():
    inner = SumReward({"a": fixed(1.0, 1.0, NAN)}, {"a": 2.0})
    scored = SumReward({"inner": inner, "b": fixed(1.0, 2.0, 3.0)})(rollout(3), TEXTS, STATE)
    assert scored.score_B.tolist() == [3.0, 4.0, 3.0]
    assert set(scored.terms) == {"inner", "inner/a", "b"}


def test_a_sum_without_terms_says_how_to_add_one():
    with pytest.raises(ValueError, match=r"\+reward@reward\.terms\.polite=kind_words"):
        SumReward({})


def test_a_weight_without_a_term_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"weights\.polit has no term.*did you mean polite\?"):
        SumReward({"polite": fixed()}, {"polit": 0.5})
    with pytest.raises(ValueError, match=r"\+reward@reward\.terms\.x=kind_words adds one"):
        SumReward({"polite": fixed()}, {"x": 0.5})


@pytest.mark.parametrize(
    ("setting", "weights"),
    [
        (0.5, [0.5] * 5),
        ([[0, 1.0], [4, 0.2]], [1.0, 0.8, 0.6, 0.4, 0.2]),
        ([[1, 1.0], [3, 0.0], [4, 2.0]], [1.0, 1.0, 0.5, 0.0, 2.0]),
        # 1 - (1 - cos(pi t)) / 2 at t = 0, 1/4, 1/2, 3/4, 1
        (["cosine", [0, 1.0], [4, 0.0]], [1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2, 0.0]),
        (["hold", [0, 0.0], [2, 1.0], [3, 2.0]], [0.0, 0.0, 1.0, 2.0, 2.0]),
        (["linear", [2, -1.0]], [-1.0] * 5),
    ],
)
def test_a_weight_moves_from_point_to_point(setting, weights):
    reward = SumReward({"a": fixed(2.0), "b": fixed(NAN)}, {"a": setting})
    got = [float(reward(rollout(1), TEXTS, RewardState(step)).score_B) for step in range(5)]
    assert got == pytest.approx([2 * weight for weight in weights], abs=1e-6)


def test_a_weight_that_moves_is_logged_where_its_term_is():
    logged = {}
    state = RewardState(1, log_metric=logged.__setitem__)
    inner = SumReward({"a": fixed(1.0), "b": fixed(1.0)}, {"a": [[0, 1.0], [2, 0.0]], "b": 3})
    SumReward({"style": inner})(rollout(1), TEXTS, state)
    assert logged == {"rewards/style/a/weight": 0.5}


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ("half", "use a number, or points"),
        (True, "use a number, or points"),
        (math.inf, "use a number, or points"),
        ([], "use a number, or points"),
        ({"from": 1}, "use a number, or points"),
        (["cosinus", [0, 1.0]], "use one of linear, cosine, hold"),
        (["cosine"], "use points"),
        ([0.5, 1.0], "use points"),
        ([[0, 1.0, 2.0]], "use points"),
        ([[0.5, 1.0]], "whole steps from 0"),
        ([[-1, 1.0]], "whole steps from 0"),
        ([[0, math.nan]], "use points"),
        ([[5, 1.0], [3, 0.5]], "steps are out of order"),
        ([[5, 1.0], [5, 0.5]], "steps are out of order"),
    ],
)
def test_a_weight_that_is_none_is_refused(weight, words):
    with pytest.raises(ValueError, match=rf"^weights\.a=.*{words}"):
        SumReward({"a": fixed()}, {"a": weight})


def test_weights_that_are_all_0_are_refused():
    with pytest.raises(ValueError, match=r"weights are all 0"):
        SumReward({"a": fixed(), "b": fixed()}, {"a": 0, "b": [[0, 0.0], [9, 0.0]]})
    SumReward({"a": fixed(), "b": fixed()}, {"a": 1, "b": -1})
    SumReward({"a": fixed()}, {"a": [[0, 0.0], [9, 1.0]]})
