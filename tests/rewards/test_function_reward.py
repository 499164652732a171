"""What a reward function is called with, and what becomes of its answer. float32; its numbers are exact."""

import asyncio
import functools
import math
from pathlib import Path

import pytest
import torch

from align.errors import AlignError
from align.rewards.function import FunctionReward
from align.types import RewardState, Rollout, Texts

STATE = RewardState(step=7)


def rollout(rows, **columns):
    """A rollout of `rows` completions of one token; row b is row 10 + b of the data set."""
    ids, mask = torch.ones(rows, 1, dtype=torch.long), torch.ones(rows, 1, dtype=torch.bool)
    return Rollout(
        prompt_ids_BP=ids,
        prompt_mask_BP=mask,
        response_ids_BT=ids,
        response_mask_BT=mask,
        loss_mask_BT=mask,
        logp_BT=torch.zeros(rows, 1),
        row_B=torch.arange(10, 10 + rows),
        sample_B=torch.zeros(rows, dtype=torch.long),
        finished_B=mask[:, 0],
        version_B=torch.zeros(rows, dtype=torch.long),
        temperature=1.0,
        columns=columns,
    )


def score(fn, completions, state=STATE, args=None, **columns):
    texts = Texts(["hello"] * len(completions), completions, [[1]] * len(completions))
    scored = FunctionReward(fn, args)(rollout(len(completions), **columns), texts, state)
    assert scored.score_B.dtype == torch.float32
    return scored.score_B.tolist()


def length(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


async def length_later(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(completion)) for completion in completions]


def test_a_function_gets_what_trl_gives_it():
    seen = {}

    def spy(**kwargs):
        seen.update(kwargs)
        return [0.0, 0.0]

    state = RewardState(step=7, log_metric=lambda name, value: None, log_extra=lambda column, values: None)
    texts = Texts(["p", "q"], ["a", "b"], [[1, 2], [3]])
    columns = {"topic": ["x", "y"], "prompt": ["p", "q"], "completion": ["", ""], "completion_ids": [[], []]}
    FunctionReward(spy, {"target": 20})(rollout(2, **columns), texts, state)
    assert seen.pop("trainer_state").global_step == 7
    assert seen == {
        "prompts": ["p", "q"],
        "completions": ["a", "b"],
        "completion_ids": [[1, 2], [3]],
        "topic": ["x", "y"],
        "log_extra": state.log_extra,
        "log_metric": state.log_metric,
        "target": 20,
    }


def test_plain_and_async_functions_score_alike():
    assert score(length, ["a", "bcd"]) == score(length_later, ["a", "bcd"]) == [1.0, 3.0]


def test_an_async_function_runs_inside_a_running_loop():
    async def notebook():
        return score(length_later, ["a", "bcd"])

    assert asyncio.run(notebook()) == [1.0, 3.0]


def test_an_async_function_keeps_its_loop_between_calls():
    loops = []

    async def spy(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        return [0.0]

    score(spy, ["a"])
    score(spy, ["a"])
    assert loops[0] is loops[1]


def test_none_is_nan():
    scores = score(lambda completions, **kwargs: [1.5, None], ["a", "b"])
    assert scores[0] == 1.5 and math.isnan(scores[1])


@pytest.mark.parametrize(
    "answer",
    [(1, True), torch.tensor([1.0, 1.0]), torch.ones(2).numpy(), [torch.tensor(1), torch.ones(1).numpy()[0]]],
)
def test_any_numbers_in_order_will_do(answer):
    assert score(lambda **kwargs: answer, ["a", "b"]) == [1.0, 1.0]


def test_a_generator_will_do():
    assert score(lambda completions, **kwargs: (len(c) for c in completions), ["a", "bcd"]) == [1.0, 3.0]


def test_scores_are_logged_under_the_name_of_the_function():
    texts = Texts(["p"], ["abc"], [[1]])
    assert FunctionReward(length)(rollout(1), texts, STATE).terms["length"].tolist() == [3.0]
    assert "brief" in FunctionReward(length, name="brief")(rollout(1), texts, STATE).terms
    assert FunctionReward(functools.partial(length)).name == "length"


def test_a_function_needs_nothing_of_the_roles():
    assert FunctionReward(length).wants == set()


def test_an_object_with_call_will_do():
    class Judge:
        def __call__(self, completions, **kwargs):
            return [1.0 for _ in completions]

    assert score(Judge(), ["a"]) == [1.0]
    assert FunctionReward(Judge()).name == "Judge"


def test_a_reward_of_trl_runs_unchanged():
    good = [{"role": "assistant", "content": "<think>\nhm\n</think>\nyes"}]
    bad = [{"role": "assistant", "content": "yes"}]
    assert score("trl.rewards.think_format_reward", [good, bad]) == [1.0, 0.0]


def test_a_reward_that_trl_makes_from_settings_runs_unchanged():
    from trl.rewards import get_soft_overlong_punishment

    reward = FunctionReward(get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20))
    texts = Texts(["p"] * 3, ["c"] * 3, [[1] * 80, [1] * 90, [1] * 101])
    assert reward(rollout(3), texts, STATE).score_B.tolist() == [0.0, -0.5, -1.0]
    assert reward.name == "soft_overlong_punishment_reward"


def test_a_column_of_the_data_set_reaches_the_function_and_its_logs_reach_align():
    def accuracy(completions, solution, trainer_state, log_metric, log_extra, **kwargs):
        right = [
            None if wanted is None else float(wanted in got) for got, wanted in zip(completions, solution, strict=True)
        ]
        log_metric("updates", trainer_state.global_step)
        log_extra("solution", solution)
        return right

    logged = {}
    state = RewardState(step=3, log_metric=logged.__setitem__, log_extra=logged.__setitem__)
    scores = score(accuracy, ["it is 4", "it is 5", "?"], state, solution=["4", "4", None])
    assert scores[:2] == [1.0, 0.0] and math.isnan(scores[2])
    assert logged == {"updates": 3, "solution": ["4", "4", None]}


def test_the_example_in_examples_scores_by_distance_to_the_target(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "rewards")
    message = [{"role": "assistant", "content": "one two three"}]
    assert score("my_rewards.brevity", ["a b", message], args={"target": 2}) == [0.0, -0.5]


def test_settings_may_not_shadow_what_align_hands_over():
    with pytest.raises(ValueError, match=r"^args\.prompts"):
        FunctionReward(length, {"prompts": 1})


def test_a_setting_that_is_also_a_column_is_refused():
    with pytest.raises(AlignError, match=r"topic is in its args and a column"):
        score(length, ["a"], args={"topic": 1}, topic=["x"])


def test_a_setting_that_is_almost_an_argument_warns():
    with pytest.warns(UserWarning, match=r"args\.targt; is it target\?"):
        FunctionReward(_brevity, {"targt": 1})


def _brevity(completions, target=20, **kwargs):
    return [0.0 for _ in completions]
