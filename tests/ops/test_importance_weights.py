"""Weights of samples that another engine drew. float32; 1e-6 by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align import ops

ENGINE_BT = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0]])
LOGP_BT = ENGINE_BT + torch.tensor([[3.0, 0.5, 9.0], [1.5, 2.0, 1.0]]).log()
MASK_BT = torch.tensor([[True, True, False], [True, True, True]])


@pytest.mark.parametrize(
    ("level", "how", "expected"),
    [
        ("token", "truncate", [[2.0, 0.5, 0.0], [1.5, 2.0, 1.0]]),
        ("token", "mask", [[0.0, 0.5, 0.0], [1.5, 2.0, 1.0]]),  # exactly at the cap is kept
        ("sequence", "truncate", [[1.5, 1.5, 0.0], [2.0, 2.0, 2.0]]),  # products 1.5 and 3
        ("sequence", "mask", [[1.5, 1.5, 0.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_importance_weights_by_hand(level, how, expected):
    cap = 2.0 + 1e-6  # logs round
    got = ops.importance_weights(LOGP_BT, ENGINE_BT, MASK_BT, level, how, cap)
    assert_close(got, torch.tensor(expected), rtol=0, atol=2e-6)


def test_what_lies_outside_the_mask_is_not_read():
    logp_BT = torch.where(MASK_BT, LOGP_BT, torch.nan)
    for level in ("token", "sequence"):
        got = ops.importance_weights(logp_BT, ENGINE_BT, MASK_BT, level, "truncate", 2.0)
        assert torch.equal(got, ops.importance_weights(LOGP_BT, ENGINE_BT, MASK_BT, level, "truncate", 2.0))


def test_weights_have_no_gradient_and_do_not_overflow():
    logp_BT = (ENGINE_BT + 500.0).requires_grad_()
    got = ops.importance_weights(logp_BT, ENGINE_BT, MASK_BT, "sequence", "truncate", 1e30)
    assert not got.requires_grad and got.isfinite().all()


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(0.1, 5), st.sampled_from(["token", "sequence"]))
def test_weights_are_the_obvious_loop(gaps, cap, level):
    engine_BT = torch.full((1, len(gaps)), -1.0)
    mask_BT = torch.ones(1, len(gaps), dtype=torch.bool)
    raw = [math.exp(sum(gaps)) if level == "sequence" else math.exp(gap) for gap in gaps]
    raw = [min(weight, math.exp(20)) for weight in raw]
    got = ops.importance_weights(engine_BT + torch.tensor(gaps), engine_BT, mask_BT, level, "truncate", cap)
    assert_close(got[0], torch.tensor([min(weight, cap) for weight in raw]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("level", "how", "cap", "word"),
    [("row", "mask", 2.0, "level"), ("token", "clip", 2.0, "how"), ("token", "mask", 0.0, "cap")],
)
def test_other_words_are_refused(level, how, cap, word):
    with pytest.raises(ValueError, match=word):
        ops.importance_weights(LOGP_BT, ENGINE_BT, MASK_BT, level, how, cap)
