"""A reward that another one opens. float32; the numbers are exact in it."""

import math

import pytest
import torch
from test_function_reward import STATE, rollout
from test_sum_reward import fixed

from align.rewards.gate import Gate
from align.rewards.sum import SumReward
from align.types import RewardState, Texts

NAN = math.nan
TEXTS = Texts(["p"] * 5, ["c"] * 5, [[1]] * 5)
SCORE, CONDITION = (1.0, 2.0, 3.0, NAN, 5.0), (0.5, 0.4, 0.6, 1.0, NAN)


def score(state=STATE, **settings):
    return Gate(fixed(*SCORE), fixed(*CONDITION), **{"threshold": 0.5, **settings})(rollout(5), TEXTS, state)


def equal(tensor, numbers):
    torch.testing.assert_close(tensor, torch.tensor(numbers), rtol=0, atol=0, equal_nan=True)


def test_the_score_counts_where_the_condition_reaches_the_threshold():
    equal(score().score_B, [1.0, 0.0, 3.0, NAN, NAN])
    equal(score(threshold=0.6, otherwise=-1.0).score_B, [-1.0, -1.0, 3.0, NAN, NAN])


def test_both_are_logged_on_all_rows_with_the_share_that_passes():
    logged = {}
    scored = score(RewardState(0, log_metric=logged.__setitem__))
    equal(scored.terms["score"], SCORE)
    equal(scored.terms["condition"], CONDITION)
    assert logged == {"rewards/open": pytest.approx(2 / 3)}


def test_a_gate_in_a_sum_is_logged_below_its_name():
    logged = {}
    gate = Gate(fixed(1.0), SumReward({"x": fixed(1.0)}))
    scored = SumReward({"safe": gate, "b": fixed(1.0)})(
        rollout(1), TEXTS, RewardState(0, log_metric=logged.__setitem__)
    )
    assert scored.score_B.tolist() == [2.0] and logged == {"rewards/safe/open": 1.0}
    assert set(scored.terms) == {"safe", "safe/score", "safe/condition", "safe/condition/x", "b"}


def test_a_gate_wants_what_both_want():
    assert Gate(fixed(wants=["reward"]), fixed(wants=["logp"])).wants == {"reward", "logp"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"score": None}, r"score is not set: add the reward, \+reward@reward\.score=fn"),
        ({"condition": "format"}, r"condition=format is no reward: use \+reward@reward\.condition=format"),
        ({"threshold": "high"}, "threshold=high: use a finite number"),
        ({"threshold": True}, "threshold=True"),
        ({"otherwise": NAN}, "otherwise=nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Gate(**{"score": fixed(), "condition": fixed(), **settings})
