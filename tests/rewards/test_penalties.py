"""Penalties for length and repetition: numbers by hand, exact in float32 unless said."""

import pytest
import torch
from test_function_reward import STATE, rollout

from align.rewards.penalties import Overlong, Repetition
from align.types import Texts


def score(reward, ids):
    given = rollout(len(ids))
    given.response_mask_BT = torch.tensor([[column < len(row) for column in range(25)] for row in ids])
    texts = Texts(["p"] * len(ids), ["c"] * len(ids), ids)
    scored = reward(given, texts, STATE)
    assert scored.terms[reward.name] is scored.score_B and scored.score_B.dtype == torch.float32
    return scored.score_B.tolist()


def test_the_last_tokens_before_the_longest_response_cost():
    lengths = [1, 16, 17, 18, 20, 25]
    assert score(Overlong(20, 4), [[7] * length for length in lengths]) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


@pytest.mark.parametrize("buffer", [0, 21])
def test_a_buffer_that_does_not_fit_is_refused(buffer):
    with pytest.raises(ValueError, match=f"buffer={buffer}: use a number of tokens from 1 to max_length=20"):
        Overlong(20, buffer)


def test_the_share_of_repeated_ngrams_costs():
    # 1 2 3 4: three pairs, all different. 5 5 5 5 5: four pairs, one kind. 1 2 1 2 1: four pairs, two kinds.
    assert score(Repetition(2), [[1, 2, 3, 4], [5] * 5, [1, 2, 1, 2, 1], [1], []]) == [0.0, -0.75, -0.5, 0.0, 0.0]
    assert score(Repetition(1, -2.0), [[1, 1, 2, 3]]) == [-0.5]


@pytest.mark.parametrize("ngram_size", [1, 2, 3, 5])
def test_repeated_ngrams_are_those_that_stood_before(ngram_size):
    """Slow: an n-gram is repeated if it stands anywhere earlier. float32, 1e-6."""
    generator = torch.Generator().manual_seed(ngram_size)
    rows = [torch.randint(0, 4, (length,), generator=generator).tolist() for length in range(25)]
    for row, got in zip(rows, score(Repetition(ngram_size, -3.0), rows), strict=True):
        starts = range(len(row) - ngram_size + 1)
        again = sum(any(row[j : j + ngram_size] == row[i : i + ngram_size] for j in range(i)) for i in starts)
        assert got == pytest.approx(-3.0 * again / max(len(starts), 1), abs=1e-6)


@pytest.mark.parametrize(("settings", "words"), [((0,), "ngram_size=0"), ((3, 0.5), "max_penalty=0.5: use 0 or less")])
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Repetition(*settings)
