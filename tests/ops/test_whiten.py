"""Masked mean and whitening. By hand 1e-6: one rounding of numbers near 1 in float32."""

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from align import ops

NUMBERS = st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=1, max_size=60)


def test_masked_mean_by_hand():
    x, mask = torch.tensor([[1.0, 2.0], [torch.nan, 6.0]]), torch.tensor([[True, True], [False, True]])
    assert ops.masked_mean(x, mask).item() == 3.0


def test_the_mean_of_nothing_is_zero():
    assert ops.masked_mean(torch.tensor([torch.nan, 1.0]), torch.tensor([False, False])).item() == 0.0


def test_nan_outside_the_mask_gives_no_gradient():
    x = torch.tensor([1.0, torch.nan], requires_grad=True)
    ops.masked_mean(x, torch.tensor([True, False])).backward()
    assert x.grad.tolist() == [1.0, 0.0]


def test_whitening_by_hand_divides_by_n_minus_one():
    # 1, 3: mean 2, squares 2; unbiased variance 2, biased 1. The 99 is outside the mask.
    x, mask = torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False])
    assert_close(ops.whiten(x, mask), torch.tensor([-(0.5**0.5), 0.5**0.5, 0.0]), rtol=0, atol=1e-6)
    assert_close(ops.whiten(x, mask, unbiased=False), torch.tensor([-1.0, 1.0, 0.0]), rtol=0, atol=1e-6)


def test_the_mean_stays_if_it_is_not_to_be_shifted():
    x, mask = torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False])
    whitened = ops.whiten(x, mask, unbiased=False, shift_mean=False)
    assert_close(whitened, torch.tensor([1.0, 3.0, 0.0]), rtol=0, atol=1e-6)


@given(NUMBERS, st.booleans())
def test_whitened_numbers_have_mean_zero_and_variance_one(numbers, unbiased):
    x = torch.tensor([number for number, _ in numbers])
    mask = torch.tensor([inside for _, inside in numbers])
    assume(mask.sum() >= 2 and x[mask].std() > 1e-2)
    inside = ops.whiten(x, mask, unbiased=unbiased)[mask].double()
    assert abs(inside.mean()) < 1e-3  # a mean of 100 cancelled to 1e-5, over a deviation of 1e-2
    assert abs(inside.var(unbiased=unbiased) - 1) < 1e-3


@given(NUMBERS, st.booleans(), st.booleans())
def test_whitening_is_finite_and_zero_outside_the_mask(numbers, unbiased, shift_mean):
    x = torch.tensor([number if inside else torch.nan for number, inside in numbers])
    mask = torch.tensor([inside for _, inside in numbers])
    whitened = ops.whiten(x, mask, unbiased, shift_mean)
    assert whitened.isfinite().all() and (whitened[~mask] == 0).all()


def test_one_token_has_no_variance_to_divide_by():
    x, mask = torch.tensor([5.0, 7.0]), torch.tensor([True, False])
    assert ops.whiten(x, mask).tolist() == [0.0, 0.0]
    assert ops.whiten(x, mask, shift_mean=False).tolist() == [5.0, 0.0]


def test_equal_numbers_whiten_to_zero():
    assert ops.whiten(torch.full((4,), 3.0), torch.ones(4, dtype=torch.bool)).tolist() == [0.0] * 4
