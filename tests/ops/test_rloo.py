"""Leave-one-out advantages. float32; by hand exact in binary, the loop 1e-3 for sums of scores up to 100."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align import ops

NAN = math.nan


def test_leave_one_out_by_hand():
    # Groups interleaved: 1, 2, 6 and 5, 3.
    score_B, group_B = torch.tensor([1.0, 5.0, 2.0, 6.0, 3.0]), torch.tensor([7, 4, 7, 7, 4])
    assert ops.rloo(score_B, group_B).tolist() == [-3.0, 2.0, -1.5, 4.5, -2.0]


def test_no_opinion_has_no_advantage_and_is_in_no_mean():
    score_B, group_B = torch.tensor([1.0, NAN, 3.0]), torch.tensor([0, 0, 0])
    assert ops.rloo(score_B, group_B).tolist() == [-2.0, 0.0, 2.0]


def test_the_only_opinion_of_a_group_has_no_advantage():
    assert ops.rloo(torch.tensor([NAN, 3.0, NAN, NAN]), torch.tensor([0, 0, 1, 1])).tolist() == [0.0] * 4


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="group 9 has one completion"):
        ops.rloo(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([8, 8, 9]))


@given(st.lists(st.tuples(st.floats(-100, 100, width=32) | st.just(NAN), st.integers(0, 2)), min_size=1, max_size=8))
def test_leave_one_out_is_the_obvious_loop(rows):
    rows = rows + rows  # no group of one
    scores, groups = zip(*rows, strict=True)
    expected = []
    for i, (score, group) in enumerate(rows):
        others = [s for j, (s, g) in enumerate(rows) if j != i and g == group and not math.isnan(s)]
        expected.append(score - sum(others) / len(others) if others and not math.isnan(score) else 0.0)
    got = ops.rloo(torch.tensor(scores), torch.tensor(groups))
    assert_close(got, torch.tensor(expected), rtol=1e-5, atol=1e-3)
