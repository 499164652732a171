"""Answers of no token, of one, cut off, or not to be trained: no NaN anywhere, and other rows train as without them."""

import pytest
import torch
from runs import SETUPS, Even, Run, all_finite, check_identical, play, trained

from align.types import Scored

CRITICS = ("own", "adapter", "head")


class Opinion(Even):
    """`Even`, with NaN on the rows (of the data set) that it knows nothing of."""

    def __init__(self, unknown=(), constant=None):
        self.unknown, self.constant = torch.tensor(unknown), constant

    def __call__(self, rollout, texts, state):
        score_B = super().__call__(rollout, texts, state).score_B
        score_B = score_B if self.constant is None else torch.full_like(score_B, self.constant)
        return Scored(score_B.masked_fill(torch.isin(rollout.row_B, self.unknown), torch.nan), {})


def cut(ppo, lengths: dict[int, int]):
    """The engine's answers of some rows end after so many tokens, unfinished."""
    generate = ppo.engine.generate

    def shorter(*args):
        generation = generate(*args)
        for row, length in lengths.items():
            generation.mask_BT[row, length:] = False
            generation.logp_BT[row, length:] = 0
            generation.finished_B[row] = False
        return generation

    ppo.engine.generate = shorter
    return ppo


def gradients(ppo, rollout, scored) -> dict[str, torch.Tensor]:
    """The gradient of one whole update, which is not taken."""
    scores = ppo.roles.score(rollout, {"logp", "ref_logp", "value"})
    experience, _ = ppo.experience(rollout, scores, scored)
    found = {}

    def keep():
        for group in ppo.roles.groups:
            for role in group.trained:
                for i, p in enumerate(group.engine.module.trained(role)):
                    found[f"{role}/{i}"] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        return {}

    ppo.roles.step = keep
    ppo.update(experience)
    return found


@pytest.mark.parametrize("setup", SETUPS)
def test_answers_of_no_token_and_of_one_give_no_nan(make, rows, setup):
    """Rows 0 and 1 in micro-batches of one row: one holds nothing that trains."""
    ppo = cut(make(setup, micro_batch_size=1), {0: 0, 1: 1})
    run = play(ppo, rows)
    assert run.rollouts[0].response_mask_BT.sum(1)[:2].tolist() == [0, 1]
    assert all_finite(run) and run.metrics[1]["grad_norm/actor"] > 0


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("setup", CRITICS)
def test_a_row_that_trains_nothing_leaves_the_gradients_of_others(make, rows, setup, size):
    """Row 2 has no token, row 5 a NaN score: as if they were not there. fp32, 1e-6 beside gradients of 0.1."""
    options = {"epochs": 1, "minibatches": 1, "micro_batch_size": size}
    writer = cut(make(setup, reward=Opinion([5])), {2: 0})
    writer.step(rows)
    rollout, scored = writer.last
    kept = torch.tensor([0, 1, 3, 4, 6, 7])
    some, few = make(setup, **options), make(setup, **options)
    for ppo in (some, few):  # a critic with an opinion, so that the value's gradient has a trunk to reach
        ppo.step(rows)
    found = gradients(some, rollout, scored)
    expected = gradients(few, rollout[kept], Scored(scored.score_B[kept], {}))
    assert scored.score_B.isnan().tolist() == [i == 5 for i in range(8)]
    assert sum(g.square().sum() for g in expected.values()).sqrt() > 0.05
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("setup", CRITICS)
def test_what_an_unscored_row_says_does_not_matter(make, rows, setup):
    """Other tokens in a row with an all-False loss mask: the same gradients. fp32, 1e-6."""
    found = []
    for shift in (0, 1):
        ppo = make(setup, epochs=1, minibatches=1)
        ppo.step(rows)
        rollout, scored = ppo.last
        rollout.loss_mask_BT = rollout.loss_mask_BT.clone()
        rollout.loss_mask_BT[3] = False
        rollout.response_ids_BT[3] = (rollout.response_ids_BT[3] + shift) % 250
        found.append(gradients(ppo, rollout, scored))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("setup", SETUPS)
def test_a_batch_cut_off_throughout_gives_no_nan(make, rows, tokenizer, setup):
    """Answers of 3 tokens at most, none of them ended, all of the one fixed score."""
    ppo = make(setup, stop_ids=(tokenizer.eos_token_id,), missing_eos_score=-1.0)
    run = play(cut(ppo, dict.fromkeys(range(8), 3)), rows)
    for rollout in run.rollouts:
        assert not rollout.finished_B.any() and rollout.response_mask_BT.sum(1).max() == 3
    assert all_finite(run) and run.metrics[0]["objective/rlhf_reward"] == pytest.approx(-1, abs=1e-5)
    assert run.metrics[1]["grad_norm/critic"] > 0


@pytest.mark.parametrize("setup", CRITICS)
def test_a_batch_of_single_tokens_of_one_score_gives_no_nan(make, rows, setup):
    """Advantages without any spread: whitened, they are 0 over almost 0."""
    ppo = make(setup, max_new_tokens=1, reward=Opinion(constant=0.5), kl_coef=0.0)
    run = play(ppo, rows)
    assert run.rollouts[0].response_mask_BT.sum(1).tolist() == [1] * 8
    assert all_finite(run)
    assert run.metrics[0]["loss/value_avg"] > 0


@pytest.mark.parametrize("setup", CRITICS)
def test_a_single_token_in_the_whole_batch_gives_no_nan(make, rows, setup):
    """Its advantage has no variance, and the other minibatch nothing to train: that one is skipped."""
    run = play(cut(make(setup), {**dict.fromkeys(range(8), 0), 4: 1}), rows, 1)
    assert run.rollouts[0].response_mask_BT.sum() == 1
    assert all_finite(run)
    assert run.metrics[0]["val/optimizer_steps"] == 2 and run.metrics[0]["skipped"] == 0.5


@pytest.mark.parametrize("setup", CRITICS)
@pytest.mark.parametrize("why", ["no token", "no score"])
def test_a_step_without_anything_to_train_is_as_if_it_had_not_been(make, rows, setup, why):
    """Skipped and said; weights and the step after it are, to the bit, those of a run without it."""
    ppo, other = (make(setup, old_logp="trainer") for _ in range(2))
    before = trained(ppo.roles)
    generate, reward = ppo.engine.generate, ppo.reward
    if why == "no token":
        cut(ppo, dict.fromkeys(range(8), 0))
    else:
        ppo.reward = Opinion(range(8))
    metrics = ppo.step(rows)
    assert metrics["skipped"] == 1 and all_finite(Run([metrics], [], trained(ppo.roles)))
    assert all(torch.equal(weight, before[name]) for name, weight in trained(ppo.roles).items())
    ppo.engine.generate, ppo.reward = generate, reward
    other.steps_done = 1
    check_identical(play(ppo, rows, 1), play(other, rows, 1))
