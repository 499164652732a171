"""A judge that looks on: when it fires, and what it takes back."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from command_line import PPO, answer, refused, stand_in, write_rows
from safetensors.torch import load_file

from align.errors import AlignError
from align.ppo import held_out
from align.ppo.watch import Watch, check_watched, standard_errors
from align.types import Scored

NAN = math.nan
RISING, FALLING = [0.0, 1.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0]
SPREAD_B = torch.tensor([-0.1, 0.0, 0.1, 0.2])


class Says:
    """A judge that says at each step what it was given, to four rows a little apart."""

    wants = frozenset()

    def __init__(self, values):
        self.values = values

    def __call__(self, rollout, texts, state):
        return Scored(self.values[state.step] + 0 * SPREAD_B)


def seen(scores, judged, **settings):
    """A watch that saw one evaluation a step, and its figures."""
    watch = Watch(Says(judged), **settings)
    return watch, [watch.see(step, None, None, score + SPREAD_B * (step + 1)) for step, score in enumerate(scores)]


def test_standard_errors_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, so 2 / (1 / sqrt 3); float64."""
    assert standard_errors(torch.tensor([1.0, NAN, 2.0, 3.0])) == pytest.approx(2 * math.sqrt(3))
    assert standard_errors(torch.tensor([-1.0, -1.0])) == -math.inf
    assert standard_errors(torch.tensor([0.0, 0.0])) == standard_errors(torch.tensor([1.0, NAN])) == 0.0


def test_fires_after_patience_evaluations_with_the_reward_up_and_the_judge_down():
    watch, figures = seen(RISING, FALLING, patience=2)
    assert [f["parted"] for f in figures] == [0, 1, 2, 3] and [f["judge"] for f in figures] == FALLING
    assert watch.best.step == 0 and watch.facts() == {"last": 1.0, "fired": 2}
    assert "step 2: the score is up 2.10 since step 0, and watch.judge down from 4.00 to 2.00" in watch.warning()


@pytest.mark.parametrize(
    ("scores", "judged"),
    [
        (RISING, [1.0, 2.0, 3.0, 4.0]),  # both rise
        ([3.0, 2.0, 1.0, 0.0], FALLING),  # both fall
        ([0.0, 0.0, 0.0, 0.0], FALLING),  # the reward differs by less than its error
        (RISING, [4.0, 3.0, 5.0, 4.0]),  # not twice in a row
        (RISING, [4.0, 4.0, 4.0, 4.0]),
    ],
)
def test_stays_silent_otherwise(scores, judged):
    watch, _ = seen(scores, judged, patience=2)
    assert watch.fired is None and watch.facts()["fired"] is None


def test_differences_are_measured_from_what_the_judge_liked_best():
    watch, figures = seen([0.0, 2.0, 3.0, 1.0], [1.0, 5.0, 4.0, 4.0], patience=1)
    assert watch.best.step == 1 and [f["parted"] for f in figures] == [0, 0, 1, 0]


def test_a_judge_without_an_opinion_ends_the_run():
    with pytest.raises(AlignError, match="has no opinion on any of 4"):
        seen([0.0], [NAN])


@pytest.fixture
def here(tmp_path, monkeypatch):
    rows = [{"prompt": f"{word} {n}"} for n in range(20) for word in ("a red kite", "rain", "the quiet harbour")]
    write_rows(tmp_path / "prompts.jsonl", rows)
    (tmp_path / "my_rewards.py").write_text(
        "def high(completion_ids, **_):\n    return [sum(ids) / len(ids) / 100 for ids in completion_ids]\n\n\n"
        "def low(completion_ids, **_):\n    return [-sum(ids) / len(ids) / 100 for ids in completion_ids]\n"
    )
    yield from stand_in(tmp_path, monkeypatch)


WATCHED = (
    f"{PPO} name=watched reward.fn=my_rewards.high critic=none advantage=rloo rollout.samples_per_prompt=4 "
    "ppo.data.eval_share=0.3 ppo.batch_size=32 ppo.eval_every=1 ppo.eval_prompts=16 ppo.kl_coef=0 ppo.steps=12 "
    "actor.learning_rate=1e-2 watch=judge watch.judge.fn=my_rewards.low watch.patience=1 watch.deviations=1"
)


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_a_stopped_run_leaves_the_policy_that_the_judge_liked_best(here, base, capsys):
    said = answer(capsys, WATCHED.format(base=base) + " watch.action=stop")
    assert said.status in (0, None), said.err
    ppo = here / "runs" / "watched" / "latest" / "ppo"
    card = json.loads((ppo / "card.json").read_text())
    fired = card["watch"]["fired"]
    assert fired == card["steps"] < 12 and card["best"]["step"] < fired
    evaluations = [json.loads(line) for line in (ppo / "metrics.jsonl").read_text().splitlines()]
    assert card["best"]["judge"] == max(one["eval/judge"] for one in evaluations)
    assert f"warning: step {fired}" in said.out and "the policy games its reward" in said.out
    left, best, last = (weights(folder) for folder in (ppo, ppo / "best", ppo / "last"))
    assert all(torch.equal(left[name], best[name]) for name in left)
    assert any(not torch.equal(left[name], last[name]) for name in left)
    assert json.loads((ppo / "ppo_state.json").read_text())["steps"] == card["best"]["step"]


def test_a_warned_run_goes_on(here, base, capsys):
    said = answer(capsys, WATCHED.format(base=base))
    ppo = here / "runs" / "watched" / "latest" / "ppo"
    card = json.loads((ppo / "card.json").read_text())
    assert card["steps"] == 12 and card["watch"]["fired"] and not (ppo / "last").exists()
    assert said.out.count("warning: step") == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("ppo.eval_every=0", ["ppo.eval_every=0: watch looks at what it samples", "use ppo.eval_every=8"]),
        ("watch.patience=0", ["watch.patience=0", "from 1"]),
        ("watch.action=halt", ["watch.action=halt", "warn, stop"]),
        ("watch.deviations=-1", ["watch.deviations=-1", "from 0"]),
        ("ppo.data.eval_share=0", ["ppo.data has none among its 60", "ppo.data.eval_share=0.27", "watch=none"]),
        ("ppo.data.eval_share=0.01", ["ppo.data has 1 among its 60", "could never fire", "ppo.data.eval_path=FILE"]),
        ("ppo.eval_prompts=1", ["ppo.eval_prompts=1 takes no more", "use ppo.eval_prompts=16"]),
        ("watch.judge.fn=my_rewards.lwo", ["my_rewards", "lwo"]),
        ("watch.judge.fn=my_rewards.high", ["watch.judge: it is the reward itself", "watch=none"]),
    ],
)
def test_a_watch_that_cannot_be(here, base, capsys, more, words):
    refused(capsys, f"{WATCHED.format(base=base)} {more}", words)


def test_a_best_policy_that_is_the_start_is_said_to_be_it(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "save", lambda *given: None)
    said = []
    for values in ([1.0, 0.5], [0.5, 1.0]):
        examiner = held_out.Examiner([], 0, held_out.Best(tmp_path))
        for step, value in enumerate(values):
            ppo = SimpleNamespace(steps_done=step)
            examiner.best.offer(value, ppo)
        examiner.leave(ppo, tmp_path, SimpleNamespace(say=said.append))
    assert said == [
        "best/ is the policy of step 0 of 1, as it started: nothing later was better",
        "best/ is the policy of step 1 of 1",
    ]


def test_few_held_out_prompts_are_warned_of_before_a_model_loads(here, base, capsys):
    said = answer(capsys, f"{WATCHED.format(base=base)} ppo.data.eval_share=0.1 ppo.steps=1")
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    at = lines.index("ppo ppo.eval_prompts=16: no more than 6 prompts held out")
    assert lines[at + 1].startswith("ppo warning: watch compares held-out prompts, and ppo.data has 6 among its 60")
    assert not any("rollouts by" in line for line in lines[:at])


def test_a_watch_of_enough_prompts_is_not_warned_of():
    assert [check_watched(8, 60, 64), check_watched(100, 1000, 8)] == ["", ""]


def test_a_reward_model_is_not_its_own_judge(here, base, reward_base, capsys):
    run = f"{WATCHED.format(base=base)} reward=model reward.path={reward_base} reward@watch.judge=model"
    run = " ".join(word for word in run.split() if ".fn=" not in word)
    refused(capsys, f"{run} watch.judge.path={reward_base}", ["is the reward that is to be watched", "FOLDER"])
    refused(capsys, run, ["watch.judge.path=auto: it is the reward"])
