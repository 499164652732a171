"""DAPO's soft overlong punishment. float32; by hand exact in binary."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align import ops


def test_overlong_by_hand():
    # Of 20 tokens the last 4 are the buffer.
    got_B = ops.overlong_penalty(torch.tensor([0, 16, 17, 18, 20, 25]), max_length=20, buffer=4)
    assert got_B.tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


@given(st.integers(1, 100), st.data())
def test_the_penalty_falls_in_a_line(max_length, data):
    buffer = data.draw(st.integers(1, max_length))
    got = ops.overlong_penalty(torch.arange(max_length + 5), max_length, buffer).tolist()
    for length, penalty in enumerate(got):
        expected = 0.0 if length <= max_length - buffer else max((max_length - buffer - length) / buffer, -1.0)
        assert penalty == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("buffer", [0, -1, 21])
def test_a_buffer_that_does_not_fit_is_refused(buffer):
    with pytest.raises(ValueError, match="from 1 to max_length=20"):
        ops.overlong_penalty(torch.tensor([3]), max_length=20, buffer=buffer)
