"""Learning rates by step, against values worked by hand and transformers' schedules."""

import pytest
import torch
from transformers import get_scheduler

from align.engine.plain import Schedule
from align.errors import AlignError


def test_rates_by_hand():
    assert [Schedule(1.0).rate(step, 4) for step in range(4)] == [1.0] * 4
    assert [Schedule(1.0, "linear").rate(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [Schedule(2.0, warmup_steps=3).rate(step, 6) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert Schedule(1.0, "cosine").rate(2, 4) == pytest.approx(0.5)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_after_the_warm_up_they_are_those_of_transformers(shape):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    name = "constant_with_warmup" if shape == "constant" else shape
    theirs = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=20)
    ours = Schedule(0.3, shape, warmup_steps=5)
    for step in range(20):
        if step >= 5:
            assert ours.rate(step, 20) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_an_unknown_shape_is_refused():
    with pytest.raises(AlignError, match="schedule=sawtooth: use one of constant, linear, cosine"):
        Schedule(1.0, "sawtooth")
