"""Groups whose scores do not differ."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from align import ops

NAN = math.nan


def test_alike_by_hand():
    score_B = torch.tensor([1.0, 2.0, 3.0, 3.0, 1.0, NAN, NAN, NAN, 1.0, 0.0])
    group_B = torch.tensor([7, 3, 9, 9, 7, 3, 4, 4, 5, 5])
    # 7: 1 1 alike; 3: 2 and no opinion; 9: 3 3 alike; 4: no opinion at all; 5: 1 and 0 differ
    assert ops.alike(score_B, group_B).tolist() == [True] * 8 + [False, False]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, -1.0, NAN]), st.integers(0, 3)), min_size=1, max_size=20))
def test_alike_is_what_a_loop_finds(rows):
    scores, groups = zip(*rows, strict=True)
    got = ops.alike(torch.tensor(scores), torch.tensor(groups)).tolist()
    for group, alike in zip(groups, got, strict=True):
        known = {score for score, own in rows if own == group and not math.isnan(score)}
        assert alike == (len(known) < 2)


def test_rounding_is_no_difference():
    """float32: one score computed in two micro-batches differs by 6e-8 and the like, of its size."""
    score_B = torch.tensor([0.3, 0.3 + 6e-8, 1e4, 1e4 + 1e-3, 0.0, 1e-5, -torch.inf, 0.0])
    group_B = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert ops.alike(score_B, group_B).tolist() == [True] * 4 + [False] * 4


def test_a_group_of_scores_alike_has_no_advantage():
    """Means of 3 and 7 equal scores in float32 are off by 3e-8, which whitening would take for a signal."""
    for size in (3, 7):
        score_B = torch.full((size,), 0.1)
        score_B[0] += 6e-8
        for advantage in (ops.rloo, ops.dr_grpo, ops.grpo):
            assert not advantage(score_B, torch.zeros(size, dtype=torch.long)).any()
