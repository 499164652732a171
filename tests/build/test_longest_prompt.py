"""How long a prompt may be: by itself what a model has room for, as asked where that fits."""

import pytest
from command_line import answer, refused, stand_in, write_data, write_rows
from peft import LoraConfig, PromptTuningConfig

from align.build.prompts import room
from align.errors import AlignError
from align.roles.folder import CAUSAL, inspect

MODEL = {"max_position_embeddings": 100}


def test_by_itself_a_prompt_has_what_positions_leave():
    assert room("auto", 40, MODEL, "actor.path") == 60
    assert room("auto", 40, MODEL, "actor.path", virtual_tokens=20) == 40
    assert room("auto", 40, {"n_positions": 1024}, "actor.path") == room("auto", 40, {}, "actor.path") == 512


def test_what_is_asked_for_is_had_or_refused():
    assert room(60, 40, MODEL, "actor.path") == 60
    assert room(10**6, 40, {}, "actor.path") == 10**6
    with pytest.raises(AlignError, match=r"100 positions of actor.path\n  use ppo.max_prompt_tokens=60 or less"):
        room(61, 40, MODEL, "actor.path")


def test_virtual_tokens_take_positions_too():
    assert room(40, 40, MODEL, "actor.path", virtual_tokens=20) == 40
    with pytest.raises(AlignError, match=r"20 virtual tokens and .* 100 positions .*\n  use ppo.max_prompt_tokens=40"):
        room(41, 40, MODEL, "actor.path", virtual_tokens=20)


def test_a_response_that_leaves_no_room_is_refused():
    with pytest.raises(AlignError, match=r"^rollout.max_new_tokens=100 leaves .*\n  use rollout.max_new_tokens=50"):
        room("auto", 100, MODEL, "actor.path")


def test_a_folder_tells_of_the_virtual_tokens_of_its_adapter(base, tmp_path):
    for config, expected in ((PromptTuningConfig(num_virtual_tokens=7), 7), (LoraConfig(), 0)):
        config.task_type, config.base_model_name_or_path = "CAUSAL_LM", base
        config.save_pretrained(tmp_path)
        assert inspect(tmp_path, "actor.path", CAUSAL).virtual_tokens() == expected
    assert inspect(base, "actor.path", CAUSAL).virtual_tokens() == 0


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_data(tmp_path)
    short = [{"prompt": f"a red kite {i}"} for i in range(12)]
    write_rows(tmp_path / "prompts.jsonl", [*short, {"prompt": "rain " * 300}])
    write_rows(tmp_path / "held_out.jsonl", [{"prompt": f"seven {i}"} for i in range(3)])
    yield from stand_in(tmp_path, monkeypatch)


REWARD = "rollout=hf rollout.max_new_tokens=12"
PPO = f"stages=ppo actor.path={{base}} ppo.data.path=prompts.jsonl {REWARD} reward=fn reward.fn=my_rewards.brevity"
PREFERENCES = (
    f"stages=preferences model={{base}} preferences.data.path=prompts.jsonl {REWARD} reward@preferences.judge=fn "
    "preferences.judge.fn=my_rewards.brevity preferences.samples=8"
)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("ppo", f"{PPO} ppo.data.eval_path=held_out.jsonl ppo.steps=1 ppo.batch_size=8 evaluate.samples=4"),
        ("preferences", f"{PREFERENCES} preferences.data.eval_share=0 rollout.temperature=100 preferences.samples=99"),
    ],
)
def test_a_stage_on_a_small_model_works_unasked_and_leaves_out_what_is_too_long(here, base, capsys, key, words):
    """The model has 256 positions."""
    said = answer(capsys, words.format(base=base))
    assert said.status in (0, None), said.err
    assert f" prompts left out: 1 longer than {key}.max_prompt_tokens=244" in said.out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (f"{PPO} ppo.max_prompt_tokens=245", ["ppo.max_prompt_tokens=245", "use ppo.max_prompt_tokens=244 or less"]),
        (f"{PREFERENCES} preferences.max_prompt_tokens=245", ["use preferences.max_prompt_tokens=244 or less"]),
        (
            "stages=evaluate actor.path={base} ppo.data.path=prompts.jsonl ppo.max_prompt_tokens=245 "
            f"{REWARD} reward=fn reward.fn=my_rewards.brevity",
            ["use ppo.max_prompt_tokens=244 or less"],
        ),
        (f"{PPO} rollout.max_new_tokens=256", ["256 positions", "use rollout.max_new_tokens=128 or less"]),
        (f"{PPO} ppo.max_prompt_tokens=some", ["ppo.max_prompt_tokens=some: use a whole number", "or auto"]),
        (f"{PPO} ppo.max_prompt_tokens=9.5", ["ppo.max_prompt_tokens", "9.5"]),
    ],
)
def test_what_cannot_fit_is_refused_before_a_model_loads(here, base, capsys, words, wanted):
    refused(capsys, words.format(base=base), wanted)
    assert not (here / "runs").exists()
