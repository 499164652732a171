"""Several rewards as one. float32; by hand 1e-6."""

import math

import pytest
import torch
from test_function_reward import STATE, rollout
from test_sum_reward import fixed

from align.rewards.ensemble import EnsembleReward
from align.types import Texts

NAN = math.nan
TEXTS = Texts(["p"] * 3, ["c"] * 3, [[1]] * 3)


def scored(**settings):
    members = {"a": fixed(1.0, 4.0, NAN), "b": fixed(3.0, NAN, NAN)}
    return EnsembleReward(members, **settings)(rollout(3), TEXTS, STATE)


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"combine": "mean"}, [2.0, 4.0, NAN]),
        ({}, [1.0, 4.0, NAN]),  # 1 and 3: mean 2, deviation 1
        ({"spread_coef": 0.5}, [1.5, 4.0, NAN]),
        ({"combine": "minimum"}, [1.0, 4.0, NAN]),
    ],
)
def test_scores_are_combined_row_by_row(settings, numbers):
    torch.testing.assert_close(scored(**settings).score_B, torch.tensor(numbers), rtol=0, atol=1e-6, equal_nan=True)


def test_members_and_their_disagreement_are_logged():
    terms = scored().terms
    assert set(terms) == {"a", "b", "disagreement"}
    torch.testing.assert_close(terms["disagreement"], torch.tensor([1.0, 0.0, NAN]), rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"terms": {"a": fixed(1.0)}}, "terms has 1 of the two or more"),
        ({"combine": "median"}, "combine=median: use one of mean, lower_bound, minimum"),
        ({"spread_coef": -1}, "spread_coef=-1: use a number from 0"),
        ({"spread_coef": NAN}, "spread_coef=nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        EnsembleReward(**{"terms": {"a": fixed(1.0), "b": fixed(2.0)}, **settings})
