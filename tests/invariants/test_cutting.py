"""How a minibatch is cut changes time and memory, and nothing else. Tolerances: `runs`."""

import pytest
import torch
from runs import SETUPS, check_alike, play


def passes_of(ppo) -> list[int]:
    """Rows of each backward pass, filled as it trains."""
    seen, train = [], ppo.roles.train
    ppo.roles.train = lambda micro, *more: (seen.append(len(micro)), train(micro, *more))[1]
    return seen


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("setup", SETUPS)
def test_the_size_of_micro_batches_does_not_matter(make, rows, reference_run, setup, size):
    """Reference: one backward pass a minibatch, of 4 rows. Rows with an adapter for each role count twice."""
    ppo = make(setup, micro_batch_size=2 * size if setup == "adapter" else size)
    seen = passes_of(ppo)
    check_alike(play(ppo, rows), reference_run(setup))
    assert max(seen) == size


def test_one_minibatch_of_8_in_one_pass_and_in_8(make, rows):
    whole, single = (make("own", minibatches=1, micro_batch_size=size) for size in (8, 1))
    seen = passes_of(whole), passes_of(single)
    check_alike(play(whole, rows), play(single, rows))
    assert seen == ([8] * 4, [1] * 32)


@pytest.mark.parametrize("tokens", [1, 60])
@pytest.mark.parametrize("setup", ["own", "adapter"])
def test_a_token_budget_does_not_matter(make, rows, reference_run, setup, tokens):
    ppo = make(setup, tokens=tokens)
    seen = passes_of(ppo)
    check_alike(play(ppo, rows), reference_run(setup))
    assert len(seen) > 8, "the budget cuts minibatches"
    if tokens == 1:
        assert set(seen) == {1}


@pytest.mark.parametrize("setup", ["own", "adapter"])
def test_rows_of_like_length_together_or_as_they_come(make, rows, reference_run, monkeypatch, setup):
    """As they come: nothing sorted, rows of any length padded to the longest beside them."""
    padding = []

    def as_they_come(length_B, size, tokens=None):
        for part in torch.arange(len(length_B)).split(min(size, 3)):
            padding.append(int((length_B[part].max() - length_B[part]).sum()))
            yield part

    monkeypatch.setattr("align.roles.roles.by_length", as_they_come)
    check_alike(play(make(setup), rows), reference_run(setup))
    assert sum(padding) > 0
