"""Data that no stage can learn from: what is wrong, in which file and row, before or as soon as it can be known."""

import pytest
from command_line import LEARNED, PPO, RM, SFT, answer, refused, stand_in, write_data

EARLY = [
    ("no path", "stages=sft model={base}", ["sft.data.path is not set", "data.path=FILE"]),
    ("no file", f"{SFT} sft.data.path=demo.jsonl", ["sft.data.path=demo.jsonl", "no such file"]),
    ("folder", f"{SFT} sft.data.path=plain", ["plain is a folder", ".jsonl"]),
    ("other suffix", f"{SFT} sft.data.path=my_rewards.py", ["my_rewards.py is no table"]),
    ("empty file", f"{SFT} sft.data.path=empty.jsonl", ["empty.jsonl", "no rows"]),
    ("broken line", f"{SFT} sft.data.path=broken.jsonl", ["broken.jsonl line 2", "not json", "one object a line"]),
    ("no column", f"{SFT} sft.data.path=nocolumn.jsonl", ["nocolumn.jsonl line 1", "'prompt'", "question, answer"]),
    ("no column of a pair", f"{RM} rm.data.path=demos.jsonl", ["demos.jsonl line 1", "'chosen'", "completion"]),
    ("no column of a prompt", f"{PPO} ppo.data.path=nocolumn.jsonl", ["nocolumn.jsonl line 1", "'prompt'"]),
    ("wrong type", f"{SFT} sft.data.path=typed.jsonl", ["typed.jsonl line 2", "number 7", "a string"]),
    ("pairs for prompts", f"{SFT} data@sft.data=prompts", ["sft.data.format=prompts", "prompt_completion"]),
    ("format that is none", f"{SFT} sft.data.format=csv", ["sft.data.format=csv", "prompt_completion"]),
    ("share", f"{PPO} ppo.data.eval_share=1", ["ppo.data.eval_share=1", "0.05"]),
    ("one file twice", f"{SFT} sft.data.eval_path=demos.jsonl", ["sft.data.eval_path=demos.jsonl", "sft.data.path"]),
    ("a row alone", f"{RM} rm.data.path=single.jsonl", ["rm.data.path", "rm.data.eval_share=0"]),
    ("share of noise", "experiment=tiny rm.data.noise=2", ["rm.data.noise=2", "from 0 to 1"]),
    ("no pairs", "experiment=tiny rm.data.pairs=0", ["rm.data.pairs=0", "1 or more"]),
    ("all pairs alike", f"{RM} rm.data.path=alike.jsonl", ["no pair is left", "alike", "rm.data.path"]),
]
LATE = [
    ("all prompts fill it", f"{SFT} sft.max_length=2", ["sft.max_length=2", "no example is left", "sft.data.path"]),
    ("all pairs too long", f"{RM} rm.max_length=2", ["rm.max_length=2", "no pair is left", "longer"]),
    ("all prompts too long", f"{PPO} ppo.max_prompt_tokens=1", ["ppo.max_prompt_tokens=1", "no prompt is left"]),
    ("scores too few", f"{PPO} reward.fn=my_rewards.short", ["'short'", "my_rewards.py", "1 scores for 8"]),
    ("score that is no number", f"{PPO} reward.fn=my_rewards.nan", ["'nan'", "my_rewards.py", "row 0", "None"]),
    (
        "reward that raises",
        f"{PPO} reward.fn=my_rewards.raises",
        ["'raises'", "KeyError", "colour", "my_rewards.py:14"],
    ),
    (
        "reward server that is not there",
        f"{LEARNED} reward=http reward.url=http://127.0.0.1:9/score reward.retries=0",
        ["'http' (http://127.0.0.1:9/score) stayed away", "write the url of a server"],
    ),
    (
        "fewer tokens than a row",
        "stages=pretrain data@pretrain.data=prompt_completion pretrain.data.path=demos.jsonl pretrain.max_length=500",
        ["pretrain.max_length=500", "tokens"],
    ),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_data(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "single.jsonl").write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n')
    yield from stand_in(tmp_path, monkeypatch)


@pytest.mark.parametrize("name, arguments, words", EARLY, ids=[name for name, *_ in EARLY])
def test_broken_data_is_refused_before_a_model_loads(here, capsys, base, name, arguments, words):
    said = refused(capsys, arguments.format(base=base), words)
    assert said.out == ""
    assert not (here / "runs").exists()


@pytest.mark.parametrize("name, arguments, words", LATE, ids=[name for name, *_ in LATE])
def test_what_only_a_run_can_know_ends_it_in_the_same_manner(here, capsys, base, name, arguments, words):
    refused(capsys, f"{arguments} ppo.batch_size=8".format(base=base), words)
    assert [path.name for path in (here / "runs" / "run").iterdir() if path.name != "latest"]
    assert not list((here / "runs").rglob("summary.json"))


def test_fewer_prompts_than_a_batch_go_round_and_it_is_said(here, capsys, base):
    said = answer(capsys, f"{PPO} ppo.steps=1 ppo.batch_size=16 evaluate.samples=2 evaluate.show=0".format(base=base))
    assert said.status == 0, said.err
    assert "11 prompts for batches of 16: each step goes round them more than once" in said.out
