"""A reward that says nothing, or nothing that tells completions apart, is told of: once, or by the run's end."""

import math

import pytest
import torch
from command_line import PPO, answer, refused, stand_in, write_data

from align.errors import AlignError
from align.ppo.reward_signal import SILENT_STEPS, Signal
from align.types import Scored

NAN = math.nan


def terms(**scores):
    each = {name: torch.tensor(values) for name, values in scores.items()}
    return Scored(each["total"], each)


def test_an_engine_that_samples_another_policy_is_warned_of_once_by_dtype():
    gap = {"val/engine_logp_gap_mean": 0.1}
    signal = Signal(9, 0)
    (warning,) = signal.see(1, scored(0.0, 1.0), gap)
    assert "step 1" in warning and "0.1 nats" in warning and "rollout=hf" in warning
    assert signal.see(2, scored(0.0, 1.0), gap) == []
    assert Signal(9, 0, torch.bfloat16).see(1, scored(0.0, 1.0), gap) == []
    assert Signal(9, 0).see(1, scored(0.0, 1.0), {"val/engine_logp_gap_mean": 1e-4}) == []


def test_completions_without_a_score_are_counted_once():
    signal = Signal(9, 0)
    (warning,) = signal.see(1, scored(0.5, NAN, 1.0, NAN), {})
    assert "step 1: 2 of 4 completions have no score" in warning and "objective/unscored" in warning
    assert signal.see(2, scored(0.5, NAN, 1.0, NAN), {}) == []


def test_a_term_without_an_opinion_on_any_row_is_named():
    signal = Signal(9, 0)
    rows = terms(total=[1.0, 2.0], mute=[NAN, NAN], some=[NAN, 1.0])
    for step in range(1, SILENT_STEPS):
        assert signal.see(step, rows, {}) == []
    (warning,) = signal.see(SILENT_STEPS, rows, {})
    assert "reward term mute" in warning and f"first {SILENT_STEPS} steps" in warning
    assert signal.see(SILENT_STEPS + 1, rows, {}) == []


def scored(*scores):
    score_B = torch.tensor(scores)
    return Scored(score_B, {"mine": score_B})


def alike(share, drawn=0):
    return {"rollout/alike_share": share, "rollout/extra_batches": float(drawn)}


def test_equal_scores_are_warned_of_once():
    signal = Signal(9, 0)
    assert signal.see(1, scored(0.0, 1.0), {}) == []
    unscored, warning = signal.see(2, scored(0.5, 0.5, NAN), {})
    assert (
        "1 of 3 completions" in unscored
        and "step 2: all 2 completions score 0.5" in warning
        and "ppo.show_every=1" in warning
    )
    assert signal.see(3, scored(0.5, 0.5), alike(1.0)) == []


def test_one_score_has_nothing_to_be_equal_to():
    assert not any("all" in one for one in Signal(9, 0).see(1, scored(0.5, NAN), {}))


@pytest.mark.parametrize(
    ("bound", "drawn", "words", "absent"),
    [
        (3, 2, "all score alike, those of 2 further batches, too:", "ppo.dynamic_sampling"),
        (3, 0, "all score alike:", "ppo.dynamic_sampling"),
        (0, 0, "or ppo.dynamic_sampling=3", "further batches"),
    ],
)
def test_samples_alike_within_each_prompt_are_warned_of_once(bound, drawn, words, absent):
    signal = Signal(9, bound)
    assert signal.see(1, scored(0.0, 0.0, 1.0, 2.0), alike(0.5)) == []
    (warning,) = signal.see(2, scored(0.0, 0.0, 1.0, 1.0), alike(1.0, drawn))
    assert words in warning and absent not in warning and "rollout.temperature" in warning
    assert signal.see(3, scored(0.0, 0.0, 1.0, 1.0), alike(1.0, drawn)) == []


@pytest.mark.parametrize(("steps", "last"), [(9, SILENT_STEPS), (2, 2), (1, 1)])
def test_a_reward_that_has_never_an_opinion_ends_the_run_in_its_first_steps(steps, last):
    signal = Signal(steps, 0)
    for step in range(1, last):
        assert signal.see(step, scored(NAN, NAN), alike(1.0)) == []
    with pytest.raises(AlignError, match=r"^reward: no completion .* \(mine: None on every row\).*\n  use a reward"):
        signal.see(last, scored(NAN, NAN), alike(1.0))


def test_silence_after_a_score_is_no_end():
    signal = Signal(9, 0)
    signal.see(1, scored(1.0, NAN), {})
    assert [signal.see(step, scored(NAN, NAN), {}) for step in range(2, 9)] == [[]] * 7


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_data(tmp_path)
    (tmp_path / "my_rewards.py").write_text(
        "def silent(completions, **_):\n    return [None for _ in completions]\n\n\n"
        "def constant(completions, **_):\n    return [1.0 for _ in completions]\n"
    )
    yield from stand_in(tmp_path, monkeypatch)


RUN = f"{PPO} critic=none advantage=rloo rollout.samples_per_prompt=2 ppo.dynamic_sampling=1 ppo.batch_size=8"


def test_a_silent_reward_ends_with_an_error(here, base, capsys):
    words = ["reward: no completion of the first 3 steps has a score (silent: None", "use a reward", "ppo.data"]
    refused(capsys, f"{RUN.format(base=base)} reward.fn=my_rewards.silent ppo.steps=5", words)


def test_a_reward_without_a_signal_is_said_on_the_terminal(here, base, capsys):
    said = answer(capsys, f"{RUN.format(base=base)} reward.fn=my_rewards.constant ppo.steps=2 evaluate.samples=2")
    assert said.status in (0, None), said.err
    assert said.out.count("warning: ") == said.out.count("warning: step 1: all 8 completions score 1:") == 1
