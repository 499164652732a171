"""The KL coefficient that follows a target. Python floats: exact but for rounding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align import ops


@pytest.mark.parametrize(
    ("kl", "value"),
    [
        (6.0, 0.1),
        (6.6, 0.1 * (1 + 0.1 * 0.5)),  # 10 % above the target, half a horizon
        (5.4, 0.1 * (1 - 0.1 * 0.5)),
        (600.0, 0.1 * (1 + 0.2 * 0.5)),  # the error is clipped
        (-3.0, 0.1 * (1 - 0.2 * 0.5)),  # an estimate below 0
    ],
)
def test_one_update_by_hand(kl, value):
    adaptive = ops.AdaptiveKL(init=0.1, target=6.0, horizon=128)
    assert adaptive.update(kl, 64) == pytest.approx(value, rel=1e-12)
    assert adaptive.value == pytest.approx(value, rel=1e-12)


@given(st.lists(st.floats(-10, 100), max_size=20), st.integers(1, 256))
def test_the_coefficient_moves_towards_the_target_and_stays_above_zero(kls, n):
    adaptive = ops.AdaptiveKL(init=0.05, target=6.0, horizon=10_000)
    for kl in kls:
        before = adaptive.value
        after = adaptive.update(kl, n)
        assert after > 0 and (after - before) * (kl - 6.0) >= 0
        assert abs(after / before - 1) <= 0.2 * n / 10_000 + 1e-12


@pytest.mark.parametrize("name", ["init", "target", "horizon"])
def test_numbers_not_above_zero_are_refused(name):
    with pytest.raises(ValueError, match=name):
        ops.AdaptiveKL(**{"init": 0.1, "target": 6.0, "horizon": 100, name: 0.0})


def test_a_batch_of_several_horizons_leaves_the_price_above_zero():
    """8 horizons of 20 % each, one after another; the linear rule gave 0.1 (1 - 0.2 * 8) = -0.06."""
    adaptive = ops.AdaptiveKL(init=0.1, target=1000.0, horizon=8)
    assert adaptive.update(0.0, 64) == pytest.approx(0.1 * 0.8**8)
    assert ops.AdaptiveKL(0.1, 1.0, 8).update(100.0, 20) == pytest.approx(0.1 * 1.2**2 * 1.1)
