"""Generalised advantage estimation. float32 against Python's float64: at most 8 terms of size 1, so 1e-5."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align import ops

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def batch(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, width, generator=generator)


def slow_gae(reward, value, mask, gamma, lam):
    """One row with lists: the sum of discounted deltas over the row's real tokens, written out."""
    real = [t for t, inside in enumerate(mask) if inside]
    deltas = []
    for i, t in enumerate(real):
        next_value = value[real[i + 1]] if i + 1 < len(real) else 0.0
        deltas.append(reward[t] + gamma * next_value - value[t])
    advantage = [0.0] * len(mask)
    for i, t in enumerate(real):
        advantage[t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[i:]))
    return advantage


def test_gae_by_hand():
    # gamma 1, lambda 1/2. deltas: 0 + 2 - 1 = 1, 0 + 3 - 2 = 1, 4 + 0 - 3 = 1; A: 1, 1 + 1/2, 1 + 3/4.
    reward, value = torch.tensor([[0.0, 0.0, 4.0, 7.0]]), torch.tensor([[1.0, 2.0, 3.0, 7.0]])
    advantage, return_ = ops.gae(reward, value, torch.tensor([[True, True, True, False]]), 1.0, 0.5)
    assert advantage.tolist() == [[1.75, 1.5, 1.0, 0.0]]
    assert return_.tolist() == [[2.75, 3.5, 4.0, 0.0]]


def test_nothing_is_bootstrapped_after_the_last_token():
    # The value in the padding would add 100 if it were read.
    reward, value = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 100.0]])
    advantage, _ = ops.gae(reward, value, torch.tensor([[True, True, False]]), 1.0, 1.0)
    assert advantage.tolist() == [[1.0, 1.0, 0.0]]


def test_tokens_masked_in_the_middle_carry_the_advantage_unchanged():
    mask = torch.tensor([[True, False, False, True]])
    reward, value = torch.tensor([[0.0, 9.0, 9.0, 1.0]]), torch.tensor([[0.5, 9.0, 9.0, 0.25]])
    holes = ops.gae(reward, value, mask, 0.9, 0.8)
    without = ops.gae(reward[:, [0, 3]], value[:, [0, 3]], mask[:, [0, 3]], 0.9, 0.8)
    for with_holes, packed in zip(holes, without, strict=True):
        assert torch.equal(with_holes[:, [0, 3]], packed)
        assert with_holes[:, [1, 2]].tolist() == [[0.0, 0.0]]


@given(
    mask=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=4),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_gae_is_the_written_out_sum(mask, gamma, lam, seed):
    reward, value = batch(len(mask), 8, seed)
    advantage, return_ = ops.gae(reward, value, torch.tensor(mask), gamma, lam)
    for b, row in enumerate(mask):
        expected = slow_gae(reward[b].tolist(), value[b].tolist(), row, gamma, lam)
        assert_close(advantage[b], torch.tensor(expected), **TOLERANCE)
        with_value = [a + v if m else 0.0 for a, v, m in zip(expected, value[b].tolist(), row, strict=True)]
        assert_close(return_[b], torch.tensor(with_value), **TOLERANCE)


@given(padding=st.integers(1, 5), seed=st.integers(0, 99), filler=st.floats(-1e30, 1e30) | st.just(float("nan")))
def test_padding_on_the_right_changes_no_real_token(padding, seed, filler):
    reward, value = batch(3, 5, seed)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])
    pad = (0, padding)
    wide = torch.nn.functional.pad
    padded = ops.gae(wide(reward, pad, value=filler), wide(value, pad, value=filler), wide(mask, pad), 0.99, 0.95)
    for short, long in zip(ops.gae(reward, value, mask, 0.99, 0.95), padded, strict=True):
        assert torch.equal(long, wide(short, pad))


def test_lambda_one_sums_all_rewards_and_lambda_zero_looks_one_step_ahead():
    reward, value = batch(2, 6, 0)
    mask = torch.ones(2, 6, dtype=torch.bool)
    _, return_ = ops.gae(reward, value, mask, 1.0, 1.0)
    assert_close(return_, reward.flip(1).cumsum(1).flip(1), **TOLERANCE)
    advantage, _ = ops.gae(reward, value, mask, 0.9, 0.0)
    next_value = torch.cat([value[:, 1:], torch.zeros(2, 1)], dim=1)
    assert_close(advantage, reward + 0.9 * next_value - value, **TOLERANCE)


def test_bfloat16_is_worked_out_in_float32():
    reward, value = batch(2, 6, 1).bfloat16()
    mask = torch.ones(2, 6, dtype=torch.bool)
    ours = ops.gae(reward, value, mask, 0.9, 0.9)
    assert torch.equal(ours[0], ops.gae(reward.float(), value.float(), mask, 0.9, 0.9)[0])
