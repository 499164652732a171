"""Micro-batches by length: every row once, no more rows or tokens than allowed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from align.roles.modules import by_length

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 9), st.one_of(st.none(), st.integers(1, 300)))
def test_every_row_once_and_no_group_beyond_its_bounds(lengths, size, tokens):
    groups = [group.tolist() for group in by_length(torch.tensor(lengths), size, tokens)]
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[row] for row in group)
        assert len(group) <= size
        assert len(group) == 1 or tokens is None or len(group) * longest <= tokens
    in_turn = [lengths[row] for group in groups for row in group]
    assert in_turn == sorted(lengths, reverse=True)


def test_a_token_budget_by_hand():
    """Lengths 20 9 3 3 2 in budgets of 10: a row longer than the budget; 9; and 3 rows x 3 = 9 tokens."""
    groups = by_length(torch.tensor([9, 3, 20, 2, 3]), 8, 10)
    assert [group.tolist() for group in groups] == [[2], [0], [1, 4, 3]]
