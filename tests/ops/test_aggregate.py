"""Losses of a batch. float32; by hand exact in binary, splits 1e-5 for a different order of summing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align import ops

HOW = ["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "fixed_length"]
X = torch.tensor([[1.0, 3.0, 99.0, 99.0], [4.0, 99.0, 99.0, 99.0], [99.0, 99.0, 99.0, 99.0]])
MASK = torch.tensor([[True, True, False, False], [True, False, False, False], [False] * 4])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("token_mean", 8 / 3),
        ("sequence_mean_token_mean", (2 + 4) / 2),
        ("sequence_mean_token_sum", (4 + 4) / 2),
        ("fixed_length", (1 + 1) / 2),
    ],
)
def test_aggregates_by_hand(how, expected):
    assert_close(ops.aggregate(X, MASK, how), torch.tensor(expected), rtol=0, atol=1e-6)


def test_fixed_length_does_not_follow_the_padding_if_the_length_is_given():
    assert ops.aggregate(X, MASK, "fixed_length", length=8) == 0.5
    assert ops.aggregate(X[:, :2], MASK[:, :2], "fixed_length", length=8) == 0.5


@pytest.mark.parametrize("how", HOW)
def test_an_empty_batch_is_zero(how):
    assert ops.aggregate(torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.bool), how) == 0


@given(
    lengths=st.lists(st.integers(0, 6), min_size=2, max_size=8),
    how=st.sampled_from(HOW),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_micro_batches_that_know_the_mini_batch_add_up_to_it(lengths, how, data, seed):
    x = torch.randn(len(lengths), 6, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    cut = data.draw(st.integers(1, len(lengths) - 1))
    width = max(max(lengths[:cut]), 1)  # the first part is trimmed, too
    total = ops.counted(mask, how)
    split = ops.aggregate(x[:cut, :width], mask[:cut, :width], how, length=6, total=total)
    split = split + ops.aggregate(x[cut:], mask[cut:], how, length=6, total=total)
    assert_close(split, ops.aggregate(x, mask, how, length=6), rtol=1e-5, atol=1e-5)


@given(
    lengths=st.lists(st.integers(0, 6), min_size=2, max_size=8),
    how=st.sampled_from(HOW),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_weighted_micro_batches_add_up_to_the_mini_batch(lengths, how, data, seed):
    x = torch.randn(len(lengths), 6, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    cut = data.draw(st.integers(1, len(lengths) - 1))

    def weight(part):
        return part.sum() if how == "token_mean" else part.any(1).sum()

    parts = [(x[:cut], mask[:cut]), (x[cut:], mask[cut:])]
    split = sum(ops.aggregate(*part, how) * weight(part[1]) for part in parts) / weight(mask).clamp(min=1)
    assert_close(split, ops.aggregate(x, mask, how), rtol=1e-5, atol=1e-5)


def test_another_way_is_refused():
    with pytest.raises(ValueError, match=r"mean_of_means.*token_mean"):
        ops.aggregate(X, MASK, "mean_of_means")
