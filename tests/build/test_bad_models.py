"""Folders that hold the wrong thing, plugins and packages that are missing: refused before a model loads."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import LEARNED, PPO, RM, SFT, refused, stand_in, write_data

CASES = [
    ("no folder", "stages=sft model=nowhere/at/all sft.data.path=demos.jsonl", ["nowhere/at/all", "org/name"]),
    ("no folder for the actor", f"{PPO} actor.path=runs/run/latest/sft", ["actor.path", "runs/run/latest/sft"]),
    ("folder that the last run has not", f"{PPO} actor.path=runs_of_old/run/latest/sft", ["runs_of_old/run/1999/sft"]),
    ("no network", "stages=sft model=nobody/nothing sft.data.path=demos.jsonl", ["nobody/nothing", "network"]),
    ("data file as model", f"{SFT} model=demos.jsonl", ["demos.jsonl", "file"]),
    ("folder without a model", f"{SFT} model=plain", ["plain", "no model", "config.json"]),
    (
        "run in the place of a stage",
        f"{PPO} actor.path=past",
        ["is a run", "use actor.path=past/sft"],
    ),
    ("run in the place of a reward model", f"{LEARNED} reward=model reward.path=past", ["use reward.path=", "past/rm"]),
    ("reward model as actor", f"{PPO} actor.path={{reward}}", ["actor.path", "reward model", "language model"]),
    ("reward model for sft", f"{SFT} sft.path={{reward}}", ["sft.path", "reward model", "language model"]),
    ("policy as reward model", f"{LEARNED} reward=model reward.path={{base}}", ["reward.path", "language model", "rm"]),
    ("reward model as reference", f"{PPO} reference.path={{reward}}", ["reference.path", "language model"]),
    ("broken config.json", f"{SFT} model=broken", ["broken", "config.json", "line 1"]),
    ("adapter without a base", f"{PPO} actor.path=orphan", ["orphan", "base_model_name_or_path"]),
    ("adapter whose base is gone", f"{PPO} actor.path=lost", ["lost", "gone", "base"]),
    ("folder without a tokenizer", f"{SFT} model=mute", ["mute", "tokenizer"]),
    ("tokenizer without EOS", f"{SFT} model=endless", ["endless", "EOS", "eos_token", "tokenizer_config.json"]),
    ("tokenizer without EOS for a reward model", f"{RM} model=endless", ["endless", "EOS"]),
    (
        "more tokens than rows in the embedding",
        f"{SFT} model=overfull",
        ["the tokenizer of overfull has", "an embedding of 40 rows", "resize_token_embeddings"],
    ),
    (
        "rows longer than the positions that are learned",
        f"{SFT} model=short sft.max_length=128",
        ["sft.max_length=128: the model of short (model) has 32 positions", "use sft.max_length=32"],
    ),
    (
        "rows of a later stage longer than the positions that are learned",
        f"{SFT} model=short sft.max_length=32 stages=[sft,rm] rm.data.path=pairs.jsonl",
        ["rm.max_length=1024: the model of short (model) has 32 positions", "use rm.max_length=32"],
    ),
    (
        "virtual tokens that leave fewer positions",
        f"{SFT} model=short sft.max_length=32 peft@sft.peft=prompt sft.peft.num_virtual_tokens=8",
        ["has 32 positions, 8 of them for virtual tokens", "use sft.max_length=24"],
    ),
    (
        "prompts and completions longer than the positions that are learned",
        f"{PPO} actor.path=short rollout=hf ppo.max_prompt_tokens=30",
        ["exceed the 32 positions of", "use ppo.max_prompt_tokens=24"],
    ),
    (
        "classifier of two labels",
        f"{LEARNED} reward=model reward.path=classifier",
        ["reward.path", "is a classifier of 2 labels", "num_labels=1", "reward=fn"],
    ),
    (
        "layer that the model has not",
        f"{SFT} peft@sft.peft=lora sft.peft.target_modules=[q_proj] sft.peft.layers_to_transform=[1,9]",
        ["sft.peft.layers_to_transform", "no layer 9", "use layers from 0 to"],
    ),
    (
        "pattern of modules that matches none",
        f"{SFT} peft@sft.peft=lora sft.peft.rank_pattern={{{{q_prj:4}}}}",
        ["sft.peft.rank_pattern.q_prj", "matches nothing", "q_proj"],
    ),
    (
        "reward model with another tokenizer",
        f"{LEARNED} reward=model reward.path=foreign",
        ["reward.path", "foreign", "{base}", "tokenizer"],
    ),
    ("critic with another tokenizer", f"{PPO} critic.path=foreign", ["critic.path", "foreign", "{base}"]),
    ("adapter to continue that is none", f"{SFT} sft.adapter=continue", ["sft.adapter=continue", "adapter"]),
    ("head size with vLLM", f"{PPO} rollout=vllm actor.path=narrow", ["head size of 24", "rollout=hf"]),
    (
        "head size with vLLM, told from pretrain",
        "experiment=tiny rollout=vllm pretrain.heads=8",
        ["head size of 16", "rollout=hf"],
    ),
    ("reward function that is not there", f"{PPO} reward.fn=my_rewards.brevitty", ["brevitty", "my_rewards.brevity"]),
    ("reward module that is not there", f"{PPO} reward.fn=my_reward.brevity", ["my_reward", "did you mean my_rewards"]),
    ("reward without a module", f"{PPO} reward.fn=brevity", ["reward.fn=brevity", "MODULE.FUNCTION"]),
    ("plugin whose import fails", f"{PPO} reward.fn=broken_plugin.score", ["no_such_package", "broken_plugin.py:1"]),
    ("reward with a wrong signature", f"{PPO} reward.fn=my_rewards.bare", ["bare", "**kwargs", "my_rewards.py"]),
    (
        "reward server without a scheme",
        f"{LEARNED} reward=http reward.url=localhost:8000/score",
        ["reward.url=localhost:8000/score is no URL", "http://HOST:PORT/PATH"],
    ),
    (
        "token that the environment lacks",
        f"{LEARNED} reward=http reward.url=http://localhost/score \"reward.headers.Authorization='Bearer $NO_TOKEN'\"",
        ["reward.headers.Authorization", "$NO_TOKEN", "export NO_TOKEN="],
    ),
    ("reward server without a URL", f"{LEARNED} reward=http", ["reward.url is not set", "http://localhost:8000/score"]),
    (
        "where a reward model sits",
        f"{LEARNED} reward=model reward.path={{reward}} reward.backbone=shred",
        ["reward.backbone=shred: use one of auto, shared, own"],
    ),
    (
        "where the reward model of a sum sits",
        f"{LEARNED} reward=sum +reward@reward.terms.rm=model reward.terms.rm.path={{reward}} "
        "reward.terms.rm.backbone=head",
        ["reward.terms.rm.backbone=head: use one of auto, shared, own"],
    ),
    ("sum of nothing", f"{LEARNED} reward=sum", ["reward=sum", "+reward@reward.terms.polite=kind_words"]),
    (
        "weight without a term",
        f"{LEARNED} reward=sum +reward@reward.terms.polite=kind_words +reward.weights.polit=1",
        ["reward.weights.polit", "polite"],
    ),
    (
        "term as a plain value",
        f"{LEARNED} reward=sum +reward.terms.polite=kind_words",
        ["+reward@reward.terms.polite="],
    ),
    (
        "policy as a term",
        f"{LEARNED} reward=sum +reward@reward.terms.rm=model reward.terms.rm.path={{base}}",
        ["reward.terms.rm.path", "language model"],
    ),
    (
        "schedule out of order",
        f"{LEARNED} reward=sum +reward@reward.terms.x=sum +reward@reward.terms.x.terms.polite=kind_words "
        "reward.terms.x.weights.polite=[[5,1.0],[3,0.5]]",
        ["reward.terms.x.weights.polite=[[5, 1.0], [3, 0.5]]", "out of order"],
    ),
    (
        "weights of nothing",
        f"{LEARNED} reward=sum +reward@reward.terms.polite=kind_words reward.weights.polite=0",
        ["reward.weights are all 0"],
    ),
    (
        "unknown normalisation",
        f"{LEARNED} reward=sum +reward@reward.terms.polite=kind_words reward.normalize=rank",
        ["reward.normalize=rank: use one of none, batch, running"],
    ),
    (
        "gate without a condition",
        f"{LEARNED} reward=gate +reward@reward.score=kind_words",
        ["reward.condition is not set", "+reward@reward.condition="],
    ),
    (
        "condition as a plain value",
        f"{LEARNED} reward=gate +reward@reward.score=kind_words reward.condition=kind_words",
        ["reward.condition=kind_words: use +reward@reward.condition=kind_words"],
    ),
    (
        "threshold in words",
        f"{LEARNED} reward=gate reward.threshold=high",
        ["reward.threshold=high: use a number"],
    ),
    ("pattern that is none", f"{LEARNED} reward=format \"reward.pattern='(a'\"", ["reward.pattern=(a is no regular"]),
    (
        "schema that is none",
        f"{LEARNED} reward=json reward.schema={{{{type:objekt}}}}",
        ["reward.schema is no JSON schema", "'objekt'"],
    ),
    (
        "buffer longer than a response",
        f"{LEARNED} reward=sum +reward@reward.terms.length=overlong reward.terms.length.buffer=9",
        ["reward.terms.length.buffer=9", "from 1 to max_length=8"],
    ),
    (
        "value without a case",
        f"{LEARNED} reward=by_column reward.column=topic +reward@reward.cases.words=fn "
        "reward.cases.words.fn=my_rewards.brevity",
        ["reward.column=topic", "'numbers'", "+reward@reward.cases.numbers=fn", "cases.default=fn"],
    ),
    (
        "column of cases that the data lack",
        f"{LEARNED} reward=sum +reward@reward.terms.x=by_column reward.terms.x.column=task "
        "+reward@reward.terms.x.cases.default=fn reward.terms.x.cases.default.fn=my_rewards.brevity",
        ["reward.terms.x.column=task", "only prompt, topic"],
    ),
    (
        "cases without one",
        f"{LEARNED} reward=by_column reward.column=topic",
        ["reward.cases has none", "+reward@reward.cases."],
    ),
    (
        "case as a plain value",
        f"{LEARNED} reward=by_column reward.column=topic reward.cases.numbers=model",
        ["reward.cases.numbers=model: no reward", "use +reward@reward.cases.numbers=model"],
    ),
    (
        "case without its reward",
        f"{LEARNED} reward=by_column reward.column=topic +reward.cases.numbers.fn=my_rewards.brevity",
        ["reward.cases.numbers has settings", "use +reward@reward.cases.numbers=fn"],
    ),
    (
        "unknown argument of a reward with cases",
        f"{LEARNED} reward=by_column reward.column=topic +reward.colour=1 +reward@reward.cases.numbers=model",
        ["reward.colour"],
    ),
    (
        "judge of a watch that is not there",
        f"{PPO} watch=judge watch.judge.fn=my_rewards.brevty",
        ["align: watch.judge.fn=my_rewards.brevty: my_rewards", "did you mean my_rewards.brevity"],
    ),
    (
        "judge of a watch with a wrong signature",
        f"{PPO} watch=judge watch.judge.fn=my_rewards.bare",
        ["align: watch.judge.fn does not fit reward 'bare' (my_rewards.py:17)", "**kwargs"],
    ),
    (
        "judge of preferences that is not there",
        "stages=preferences model={base} preferences.data.path=prompts.jsonl data@preferences.data=prompts "
        "reward@preferences.judge=fn preferences.judge.fn=nowhere.score",
        ["align: preferences.judge.fn=nowhere.score: no module nowhere"],
    ),
    (
        "judge of a reward model without terms",
        "stages=rm model={base} rm.data.path=pairs.jsonl +reward@rm.judge=sum",
        ["rm.judge.terms has none", "+reward@rm.judge.terms.polite=kind_words"],
    ),
    (
        "term with a function that is not there",
        f"{LEARNED} reward=sum +reward@reward.terms.x=fn reward.terms.x.fn=my_rewards.brevty",
        ["align: reward.terms.x.fn=my_rewards.brevty"],
    ),
    (
        "setting that align hands over",
        f"{LEARNED} reward=sum +reward@reward.terms.x=fn reward.terms.x.fn=my_rewards.brevity "
        "reward.terms.x.args.prompts=1",
        ["align: reward.terms.x.args.prompts is what align itself hands over to reward 'brevity' (my_rewards.py:1)"],
    ),
    (
        "gate in a sum without a condition",
        f"{LEARNED} reward=sum +reward@reward.terms.x=gate +reward@reward.terms.x.score=kind_words",
        ["reward.terms.x.condition is not set", "+reward@reward.terms.x.condition=fn"],
    ),
    (
        "term without a reward model",
        f"{LEARNED} reward=sum +reward@reward.terms.rm=model",
        ["reward.terms.rm.path", "runs/run/latest/rm"],
    ),
]

GPT_2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 32, "max_position_embeddings": 32,
    "rope_parameters": None,
}  # fmt: skip
"""A model whose positions are learned."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, base, reward_base):
    """A folder with models of every wrong kind, and data."""
    home = tmp_path_factory.mktemp("models")
    write_data(home)
    (home / "plain").mkdir()
    (home / "past" / "sft").mkdir(parents=True)
    (home / "past" / "sft" / "card.json").write_text("{}")
    (home / "past" / "rm").mkdir()
    (home / "past" / "rm" / "card.json").write_text("{}")
    (home / "runs_of_old" / "run" / "1999" / "sft").mkdir(parents=True)
    (home / "runs_of_old" / "run" / "2000").mkdir()
    (home / "runs_of_old" / "run" / "latest").symlink_to("2000")
    (home / "broken").mkdir()
    (home / "broken" / "config.json").write_text("{ broken")
    adapter(home / "orphan", None)
    adapter(home / "lost", str(home / "gone"))
    changed(base, home / "mute", {})
    for file in (home / "mute").glob("token*"):
        file.unlink()
    changed(base, home / "narrow", {"hidden_size": 48, "num_attention_heads": 2, "head_dim": 24})
    changed(base, home / "endless", {})
    changed_json(home / "endless" / "tokenizer_config.json", {"eos_token": None})
    foreign(base, reward_base, home / "foreign")
    changed(base, home / "overfull", {"vocab_size": 40})
    changed(base, home / "short", GPT_2)
    changed(reward_base, home / "classifier", {"id2label": {"0": "bad", "1": "good"}})
    return home


@pytest.fixture
def here(folders, monkeypatch):
    monkeypatch.setattr("align.roles.tokenizer.without_network", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield from stand_in(folders, monkeypatch)


@pytest.mark.parametrize("name, arguments, words", CASES, ids=[name for name, *_ in CASES])
def test_what_cannot_work_is_refused_before_a_model_loads(here, capsys, base, reward_base, name, arguments, words):
    models = {"base": base, "reward": reward_base}
    said = refused(capsys, arguments.format(**models), [word.format(**models) for word in words])
    assert said.out == ""
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "package, arguments, words",
    [
        ("vllm", "rollout=vllm", ["rollout=vllm", "vllm is not installed", "rollout=hf"]),
        ("deepspeed", "zero@actor.zero=stage2", ["actor.zero", "deepspeed is not installed", "zero@actor.zero=none"]),
    ],
)
def test_a_package_that_is_missing_is_named(here, capsys, base, monkeypatch, package, arguments, words):
    monkeypatch.setattr("align.installed.installed", lambda name: name != package)
    refused(capsys, f"{PPO} {arguments}".format(base=base), [*words, f"pip install 'align-rlhf[{package}]'"])
    assert not (here / "runs").exists()


def offline() -> bool:
    return True


def changed(source: str, folder: Path, changes: dict) -> None:
    """A copy of a model's folder with another config.json."""
    shutil.copytree(source, folder)
    changed_json(folder / "config.json", changes)


def changed_json(file: Path, changes: dict) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def adapter(folder: Path, base: str | None) -> None:
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def foreign(base: str, reward_base: str, folder: Path) -> None:
    """The reward model with a tokenizer in which one word has another name."""
    shutil.copytree(reward_base, folder)
    text = (folder / "tokenizer.json").read_text()
    assert '"<|assistant|>"' in text
    for file in folder.glob("token*"):
        file.write_text(file.read_text().replace("<|assistant|>", "<|clerk|>"))
