"""logprobs and entropy. float32 against float64 of another formula: tolerance 1e-5, a few units in the last
place of numbers below 20."""

import math

import pytest
import torch
from torch.testing import assert_close

from align import ops

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def logits(*shape, scale=5.0, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_logprobs_by_hand():
    # Two tokens with odds 3 to 1: log 3/4 and log 1/4. exp of a float32 log is exact to 1e-6.
    logits_BTV = torch.tensor([[[math.log(3.0), 0.0], [math.log(3.0), 0.0]]])
    expected = torch.tensor([[math.log(0.75), math.log(0.25)]])
    assert_close(ops.logprobs(logits_BTV, torch.tensor([[0, 1]])), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_logprobs_are_a_gathered_log_softmax(temperature):
    logits_BTV, ids_BT = logits(3, 4, 11), torch.arange(12).reshape(3, 4) % 11
    expected = (logits_BTV.double() / temperature).log_softmax(-1).gather(-1, ids_BT[..., None])[..., 0]
    assert_close(ops.logprobs(logits_BTV, ids_BT, temperature).double(), expected, **TOLERANCE)


def test_logprobs_have_the_gradient_of_log_softmax():
    ids_BT, weight_BT = torch.arange(12).reshape(3, 4) % 11, logits(3, 4, seed=1)
    ours = logits(3, 4, 11).requires_grad_()
    slow = ours.detach().double().requires_grad_()
    (ops.logprobs(ours, ids_BT, 0.7) * weight_BT).sum().backward()
    (((slow / 0.7).log_softmax(-1).gather(-1, ids_BT[..., None])[..., 0]) * weight_BT).sum().backward()
    assert_close(ours.grad.double(), slow.grad, **TOLERANCE)


def test_logprobs_of_bfloat16_logits_are_float32():
    logits_BTV = logits(2, 3, 7).bfloat16()
    logp_BT = ops.logprobs(logits_BTV, torch.zeros(2, 3, dtype=torch.long))
    assert logp_BT.dtype == torch.float32
    # Equal, not near: the bfloat16 numbers are exact in float32, and the sums are the same.
    assert_close(logp_BT, ops.logprobs(logits_BTV.float(), torch.zeros(2, 3, dtype=torch.long)), rtol=0, atol=0)


def test_logprobs_of_huge_logits_are_finite():
    logp_BT = ops.logprobs(torch.tensor([[[1e4, -1e4]]]), torch.tensor([[1]]))
    assert logp_BT.item() == -2e4


def test_a_row_alone_and_in_a_batch_agree_to_the_bit():
    logits_BTV, ids_BT = logits(5, 3, 13), torch.zeros(5, 3, dtype=torch.long)
    together = ops.logprobs(logits_BTV, ids_BT)
    assert torch.equal(together[2:3], ops.logprobs(logits_BTV[2:3], ids_BT[2:3]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_logprobs_refuse_a_temperature_not_above_zero(temperature):
    with pytest.raises(ValueError, match="temperature"):
        ops.logprobs(logits(1, 1, 3), torch.zeros(1, 1, dtype=torch.long), temperature)


def test_entropy_of_equal_logits_is_log_of_their_number():
    assert_close(ops.entropy(torch.zeros(2, 3, 8)), torch.full((2, 3), math.log(8)), rtol=0, atol=1e-6)


def test_entropy_is_that_of_torchs_categorical():
    logits_BTV = logits(3, 4, 11)
    expected = torch.distributions.Categorical(logits=logits_BTV.double()).entropy()
    assert_close(ops.entropy(logits_BTV).double(), expected, **TOLERANCE)


def test_a_token_that_cannot_be_sampled_adds_no_entropy():
    logits_BTV = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    assert_close(ops.entropy(logits_BTV), torch.tensor([[math.log(2)]]), rtol=0, atol=1e-6)


def test_entropy_has_a_finite_gradient_where_a_probability_underflows():
    logits_BTV = torch.tensor([[[0.0, -500.0, -torch.inf]]], requires_grad=True)
    ops.entropy(logits_BTV).sum().backward()
    assert logits_BTV.grad.isfinite().all()
