"""What PPO tells its reward, and what it saves of it."""

import json

import pytest
import torch

from align.ppo.held_out import STATE_FILE, evaluate, save
from align.rewards.parts import learned
from align.rewards.sum import SumReward
from align.types import Scored


class Ids:
    """A score that differs from row to row; notes each call's step and whether it is of training."""

    wants = frozenset()

    def __init__(self):
        self.calls = []

    def __call__(self, rollout, texts, state):
        self.calls.append((state.step, state.training))
        return Scored(rollout.response_ids_BT[:, 0].float() / 100)


def test_a_reward_is_told_the_step_and_whether_the_batch_is_trained_on(make_ppo, rows):
    reward = Ids()
    ppo = make_ppo(reward=reward)
    evaluate(ppo, rows[:2], seed=0)
    ppo.step(rows), evaluate(ppo, rows[:2], seed=0), ppo.step(rows)
    assert reward.calls == [(0, False), (0, True), (1, False), (1, True)]


def test_weights_and_deviations_stand_in_the_metrics_and_the_state_is_saved(make_ppo, rows, tmp_path):
    """The step's score is hand-made of its terms: float32, 1e-5."""
    reward = SumReward({"ids": Ids(), "more": Ids()}, {"ids": [[0, 1.0], [2, 0.0]], "more": -2}, "running")
    ppo = make_ppo(reward=reward)
    seen = []
    for weight in (1.0, 0.5):
        metrics = ppo.step(rows)
        seen.append(ppo.last[0].response_ids_BT[:, 0].float() / 100)
        deviation = float(torch.cat(seen).std(correction=0))
        assert metrics["rewards/ids/weight"] == weight and "rewards/more/weight" not in metrics
        assert metrics["rewards/ids/deviation"] == pytest.approx(deviation, rel=1e-5)
        torch.testing.assert_close(ppo.last[1].score_B, (weight - 2) * seen[-1] / deviation, rtol=1e-5, atol=1e-5)
    save(ppo, tmp_path)
    state = json.loads((tmp_path / STATE_FILE).read_text())
    assert state["reward"] == {"": reward.learned()} == learned(reward) and set(state["reward"][""]) == {"ids", "more"}
