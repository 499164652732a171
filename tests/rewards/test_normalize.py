"""Terms of a sum divided by their deviations. Sums in float64 of float32 scores: 1e-5 of them."""

import json
import math

import pytest
import torch
from test_function_reward import rollout

from align.rewards.parts import learned, load_learned
from align.rewards.sum import SumReward
from align.types import RewardState, Scored, Texts

NAN = math.nan
SCORES = [[1.0, 2.0, 6.0, NAN], [100.0, 300.0, 200.0, 400.0], [5.0, 5.0, 5.0, 5.0], [NAN] * 4, [-3.0, 0.5, 2.0, 0.0]]


def given():
    """A reward that says what its `scores` are at the time."""

    def reward(rollout, texts, state):
        return Scored(torch.tensor(reward.scores))

    reward.wants = set()
    return reward


def summed(reward, scores, training=True, **logs):
    reward.terms["a"].scores, reward.terms["b"].scores = scores, [0.0] * 4
    state = RewardState(0, training=training, **logs)
    return reward(rollout(4), Texts(["p"] * 4, ["c"] * 4, [[1]] * 4), state).score_B


def make(normalize, weight=1.0):
    return SumReward({"a": given(), "b": given()}, {"a": weight}, normalize)


def expected(scores, over, weight=1.0):
    """Slow: divided by the deviation of all values in `over`, where they vary."""
    values = [value for batch in over for value in batch if not math.isnan(value)]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) or 1.0
    return [0.0 if math.isnan(value) else weight * value / deviation for value in scores]


def test_without_normalisation_terms_are_added_as_they_are():
    assert summed(make("none"), SCORES[0]).tolist() == [1.0, 2.0, 6.0, 0.0]


@pytest.mark.parametrize("normalize", ["batch", "running"])
def test_terms_are_divided_by_their_deviation_before_the_weight(normalize):
    reward = make(normalize, weight=0.5)
    for number, scores in enumerate(SCORES):
        batches = SCORES[: number + 1] if normalize == "running" else [scores]
        got = summed(reward, scores).tolist()
        if number == 3:
            assert got == [0.0] * 4  # term a has no opinion at all
        else:
            assert got == pytest.approx(expected(scores, batches, 0.5), rel=1e-5), number


def test_a_term_keeps_its_mean_in_the_new_unit():
    score_B = summed(make("batch"), [10.0, 12.0, 10.0, 12.0])
    assert float(score_B.mean()) == pytest.approx(11.0) and float(score_B.std(correction=0)) == pytest.approx(1.0)


@pytest.mark.parametrize("normalize", ["batch", "running"])
def test_evaluation_goes_by_what_training_has_come_to_and_leaves_it_alone(normalize):
    reward, twin = make(normalize), make(normalize)
    before = summed(reward, SCORES[1], training=False)
    assert before.tolist() == pytest.approx(expected(SCORES[1], [SCORES[1]]), rel=1e-5)
    assert summed(reward, SCORES[4], training=False).tolist() == pytest.approx(expected(SCORES[4], [SCORES[1]]))
    assert learned(reward) == {}
    for scores in (SCORES[0], SCORES[4]):
        one, other = summed(reward, scores), summed(twin, scores)
        assert torch.equal(one, other)
        evaluated = summed(reward, SCORES[1], training=False).tolist()
        over = [SCORES[0], SCORES[4]] if scores is SCORES[4] and normalize == "running" else [scores]
        assert evaluated == pytest.approx(expected(SCORES[1], over), rel=1e-5)


@pytest.mark.parametrize("normalize", ["batch", "running"])
def test_what_was_learned_goes_through_json(normalize):
    """To the bit: a float in JSON is the float64 that it was."""
    straight, stopped = make(normalize), make(normalize)
    for scores in SCORES[:2]:
        summed(straight, scores), summed(stopped, scores)
    saved = json.loads(json.dumps(learned(SumReward({"inner": stopped}))))
    assert list(saved) == ["terms.inner"]
    resumed = make(normalize)
    load_learned(SumReward({"inner": resumed}), saved)
    for training in (False, True):
        assert torch.equal(summed(straight, SCORES[4], training), summed(resumed, SCORES[4], training))


def test_the_deviation_is_logged():
    logged = {}
    summed(make("batch"), [0.0, 2.0, 0.0, 2.0], log_metric=logged.__setitem__)
    assert logged == {"rewards/a/deviation": 1.0, "rewards/b/deviation": 1.0}


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="normalize=group: use one of none, batch, running"):
        make("group")
