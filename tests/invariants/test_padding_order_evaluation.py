"""Columns of padding, the order of prompts and evaluation leave training as it is. Tolerances: `runs`."""

import random
from dataclasses import replace

import pytest
import torch
from runs import FAR, RATE, SETUPS, check_identical, check_same_numbers, play, trained

from align.ppo.held_out import evaluate, save
from align.ppo.rollouts import as_rows
from align.types import Experience, Rollout

WANT = {"logp", "ref_logp", "value", "entropy"}


def padded(rollout: Rollout, left: int, right: int) -> Rollout:
    """The rollout with columns more of padding on the left of prompts and the right of responses, full of rubbish."""
    generator = torch.Generator().manual_seed(left + 10 * right)

    def rubbish(x, wide):
        return torch.randint(5, 250, (len(x), wide), generator=generator).to(x.dtype)

    def wider(x, side):
        blank = x.new_zeros(len(x), side) if x.dtype in (torch.bool, torch.float32) else rubbish(x, side)
        return torch.cat([x, blank], 1)

    filled = torch.where(rollout.prompt_mask_BP, rollout.prompt_ids_BP, rubbish(rollout.prompt_ids_BP, 1))
    written = torch.where(rollout.response_mask_BT, rollout.response_ids_BT, rubbish(rollout.response_ids_BT, 1))
    names = ("response_mask_BT", "loss_mask_BT", "logp_BT")
    return replace(
        rollout,
        prompt_ids_BP=wider(filled.flip(1), left).flip(1),
        prompt_mask_BP=wider(rollout.prompt_mask_BP.flip(1), left).flip(1),
        response_ids_BT=wider(written, right),
        **{name: wider(getattr(rollout, name), right) for name in names},
    )


def train_on(ppo, rollout: Rollout, scored) -> tuple:
    """Scores, the update's metrics and the weights after it."""
    scores = ppo.roles.score(rollout, WANT)
    experience, _ = ppo.experience(rollout, scores, scored)
    return scores, ppo.update(experience), trained(ppo.roles)


@pytest.mark.parametrize("trimmed", [True, False])
@pytest.mark.parametrize("positions", ["relative", "absolute"])
@pytest.mark.parametrize("setup", SETUPS)
def test_columns_of_padding_do_not_matter(make, rows, base, absolute, monkeypatch, setup, positions, trimmed):
    """7 columns more on the left, 5 on the right, other ids in all padding; trimmed away, or computed after all.

    For a Llama, to which a shift of all positions is nothing, and for a GPT-2, to which it is not.

    Scores to 1e-5 (fp32, log-probabilities of up to 20 nats); an update, 4 optimizer steps, as `runs` says.
    """
    path = {"relative": base, "absolute": absolute}[positions]
    writer = make(setup, path=path)
    writer.step(rows)  # a policy that is not the reference, and a critic with an opinion
    rollout, scored = writer.last
    plain, wide = make(setup, path=path), make(setup, path=path)
    for ppo in (plain, wide):
        ppo.step(rows)
    scores, metrics, weights = train_on(plain, rollout, scored)
    if not trimmed:
        monkeypatch.setattr(Rollout, "trim", lambda self: self)
        monkeypatch.setattr(Experience, "trim", lambda self: self)
    shapes = []
    forward = wide.roles.group("actor").engine.forward
    wide.roles.group("actor").engine.forward = lambda ids, *more: (shapes.append(ids.shape[1]), forward(ids, *more))[1]
    scores_wide, metrics_wide, weights_wide = train_on(wide, padded(rollout, 7, 5), scored)
    width = rollout.input_ids_BN().shape[1]
    assert max(shapes) <= width if trimmed else set(shapes) == {width + 12}
    for name in ("logp_BT", "ref_logp_BT", "value_BT", "entropy_BT"):
        one, other = getattr(scores, name), getattr(scores_wide, name)
        torch.testing.assert_close(other[:, : one.shape[1]], one, rtol=0, atol=1e-5, msg=lambda m, n=name: n + m)
        assert not other[:, one.shape[1] :].any() and one.std() > 1e-3
    for name, value in metrics.items():
        if "clipfrac" not in name:  # a share of tokens jumps where one stands at the edge
            assert metrics_wide[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    for name, weight in weights.items():
        torch.testing.assert_close(weights_wide[name], weight, rtol=0, atol=FAR * RATE)


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_prompts_padded_on_the_left_are_written_on_at_their_own_positions(make, rows, base, absolute, positions):
    """Prompts of several lengths in a batch: by the trainer each answer is as likely as the engine says. fp32."""
    ppo = make("own", path={"relative": base, "absolute": absolute}[positions], old_logp="trainer")
    assert len({len(row.ids) for row in rows}) > 2
    assert max(ppo.step(rows)["val/engine_logp_gap"] for _ in range(2)) < 1e-4


@pytest.mark.parametrize("setup", ["own", "adapter"])
def test_the_order_of_prompts_does_not_matter(make, rows, setup):
    """One minibatch, since minibatches are drawn by place: each row gets its completion, and training its numbers."""
    shuffled = list(rows)
    random.Random(1).shuffle(shuffled)
    one = play(make(setup, minibatches=1), rows)
    other = play(make(setup, minibatches=1), shuffled)
    check_same_numbers(one, other)
    for a, b in zip(one.rollouts, other.rollouts, strict=True):
        assert a.row_B.tolist() != b.row_B.tolist()
        back = b[b.row_B.argsort()]
        assert torch.equal(a.response_ids_BT, back.response_ids_BT) and torch.equal(a.row_B, back.row_B)
        assert torch.equal(a.response_mask_BT, back.response_mask_BT)


@pytest.mark.parametrize("setup", SETUPS)
def test_evaluation_and_saving_leave_training_as_it_is_to_the_bit(
    make, rows, tokenizer, reference_run, tmp_path, setup
):
    """Held-out prompts of other lengths before, between and after the steps; the global generator is stirred too."""
    held_out = as_rows([{"prompt": "sing of seven red kites and of rain"}, {"prompt": "old"}], tokenizer)
    ppo, scores = make(setup), []

    def look() -> None:
        torch.manual_seed(len(scores))
        scores.append(evaluate(ppo, held_out, seed=0))
        save(ppo, tmp_path)

    check_identical(play(ppo, rows, between=look), reference_run(setup))
    assert len(scores) == 3 and scores[0]["eval/kl"] == pytest.approx(0, abs=1e-5) != scores[2]["eval/kl"]
