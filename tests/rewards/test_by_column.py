"""A reward by the value of a column: who is handed what, what becomes of it, and values without a case."""

import math

import pytest
import torch
from test_function_reward import STATE, rollout
from test_sum_reward import fixed

from align.errors import AlignError
from align.rewards.by_column import ByColumn
from align.rewards.function import FunctionReward
from align.rewards.parts import check_rows, reads_rows
from align.rewards.sum import SumReward
from align.types import RewardState, Scored, Scores, Texts

NAN = math.nan
TEXTS = Texts(["p", "q", "r"], ["a", "bc", "def"], [[1], [2, 2], [3, 3, 3]])


def lengths(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def score(cases, values, state=STATE, **columns):
    return ByColumn("task", cases)(rollout(3, task=values, **columns), TEXTS, state)


def equal(tensor, numbers):
    torch.testing.assert_close(tensor, torch.tensor(numbers), rtol=0, atol=0, equal_nan=True)


def test_each_row_is_scored_by_the_case_of_its_value_and_each_case_is_logged():
    scored = score({"math": FunctionReward(lengths), "chat": fixed(7.0)}, ["math", "chat", "math"])
    equal(scored.score_B, [1.0, 7.0, 3.0])
    assert set(scored.terms) == {"math", "chat"}
    equal(scored.terms["math"], [1.0, NAN, 3.0])
    equal(scored.terms["chat"], [NAN, 7.0, NAN])


def test_a_case_is_handed_its_rows_alone():
    seen = {}

    def spy(**kwargs):
        seen.update(kwargs)
        return [0.0, 0.0]

    score({"a": FunctionReward(spy), "b": fixed(1.0)}, ["a", "b", "a"], topic=["x", "y", "z"])
    assert seen["prompts"] == ["p", "r"] and seen["completions"] == ["a", "def"] and seen["topic"] == ["x", "z"]
    assert seen["completion_ids"] == [[1], [3, 3, 3]]


def test_a_case_is_handed_its_rows_of_the_scores_and_of_the_rollout():
    seen = []

    def spy(rollout, texts, state):
        seen.append((rollout.row_B.tolist(), state.place))
        return Scored(state.scores.reward_BK[:, 0])

    spy.wants = {"reward"}
    state = RewardState(0, Scores(reward_BK=torch.tensor([[1.0], [2.0], [3.0]])))
    cases = {"a": spy, "b": fixed(9.0)}
    equal(score(cases, ["b", "a", "a"], state).score_B, [9.0, 2.0, 3.0])
    assert seen == [([11, 12], "rewards/a")] and ByColumn("task", cases).wants == {"reward"}


def test_terms_of_a_case_are_logged_below_its_name_and_no_opinion_stays_one():
    inner = SumReward({"x": fixed(1.0, NAN), "y": fixed(2.0, NAN)})
    scored = score({"a": inner, "b": fixed(5.0)}, ["a", "b", "a"])
    equal(scored.score_B, [3.0, 5.0, NAN])
    assert set(scored.terms) == {"a", "a/x", "a/y", "b"}
    equal(scored.terms["a/y"], [2.0, NAN, NAN])


def test_numbers_truths_and_null_name_cases_as_yaml_has_them():
    cases = {"1": fixed(1.0), "true": fixed(2.0), "null": fixed(3.0)}
    equal(score(cases, [True, None, 1]).score_B, [2.0, 3.0, 1.0])
    equal(ByColumn("task", {1: fixed(1.0, 1.0, 1.0)})(rollout(3, task=[1, 1, "1"]), TEXTS, STATE).score_B, [1.0] * 3)


def test_the_default_takes_every_other_value():
    equal(score({"a": fixed(1.0), "default": fixed(2.0, 3.0)}, ["b", "a", 2.5]).score_B, [2.0, 1.0, 3.0])


def test_a_value_without_a_case_stops_the_run_with_its_row():
    words = (
        r"reward\.column=task: row 1 of the batch \(row 11 of the data set\) has 'code', and the cases are a"
        r"\n  use \+reward@reward\.cases\.code=fn, or \+reward@reward\.cases\.default=fn for all other values"
    )
    with pytest.raises(AlignError, match=words):
        score({"a": fixed(1.0)}, ["a", "code", "a"])
    with pytest.raises(AlignError, match=r"(?s)has 2\.5, .*cases\.VALUE=fn"):
        score({"a": fixed(1.0)}, ["a", 2.5, "a"])
    with pytest.raises(AlignError, match=r"reward\.column=task: the data set has no such column"):
        ByColumn("task", {"a": fixed(1.0)})(rollout(3), TEXTS, STATE)


def test_rows_are_looked_at_before_a_run():
    reward = SumReward({"all": fixed(1.0), "style": ByColumn("task", {"a": fixed(1.0)})})
    assert reads_rows(reward) and not reads_rows(SumReward({"all": fixed(1.0)}))
    check_rows(reward, [{"prompt": "p", "task": "a"}], "reward")
    with pytest.raises(AlignError, match=r"reward\.terms\.style\.column=task: the prompt 'q' has 'b'.*the cases are a"):
        check_rows(reward, [{"prompt": "p", "task": "a"}, {"prompt": "q", "task": "b"}], "reward")
    with pytest.raises(AlignError, match=r"no such column, only prompt, topic\n  use reward\.terms\.style\.column="):
        check_rows(reward, [{"prompt": "p", "topic": "a"}], "reward")


def test_a_case_looks_at_its_own_rows_alone():
    inner = ByColumn("level", {"easy": fixed(1.0)})
    reward = ByColumn("task", {"a": inner, "b": fixed(1.0)})
    check_rows(reward, [{"task": "a", "level": "easy"}, {"task": "b", "level": "hard"}], "reward")
    with pytest.raises(AlignError, match=r"reward\.cases\.a\.column=level: .* has 'hard'"):
        check_rows(reward, [{"task": "a", "level": "hard"}, {"task": "b", "level": "easy"}], "reward")


def test_a_case_that_no_row_has_is_pointed_at():
    reward = ByColumn("task", {"maths": fixed(1.0), "default": fixed(1.0)})
    with pytest.warns(UserWarning, match=r"reward\.cases\.maths: no row of the data set has task=maths"):
        check_rows(reward, [{"task": "math"}], "reward")


def test_no_case_at_all_is_refused():
    with pytest.raises(ValueError, match=r"cases has none: add one for each value, \+reward@reward\.cases\.VALUE=fn"):
        ByColumn("task", {})
