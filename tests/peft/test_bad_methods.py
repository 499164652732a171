"""Methods that cannot be as they are asked for: a clear word, before a model loads where it can be known."""

from __future__ import annotations

import pytest
from command_line import PPO, SFT, refused, stand_in, write_data

WRONG = [
    ("unknown field", f"{SFT} peft@sft.peft=oft +sft.peft.blocks=3", ["sft.peft", "blocks"]),
    ("rank 0", f"{SFT} peft@sft.peft=lora sft.peft.r=0", ["sft.peft", "r"]),
    (
        "targets that match nothing",
        f"{SFT} peft@sft.peft=ia3 sft.peft.target_modules=[nowhere] sft.peft.feedforward_modules=[]",
        ["sft.peft", "nowhere", "not found"],
    ),
    (
        "steps that contradict the plan of SFT",
        f"{SFT} peft@sft.peft=adalora sft.peft.total_step=7 sft.args.max_steps=3",
        ["sft.peft.total_step=7", "3 optimizer steps", "write sft.peft.total_step=null"],
    ),
    (
        "steps that contradict the plan of PPO",
        f"{PPO} peft@actor.peft=adalora actor.peft.total_step=7 ppo.steps=2 ppo.epochs=1 ppo.minibatches=1",
        ["actor.peft.total_step=7", "2 optimizer steps"],
    ),
    (
        "AdaLoRA under DeepSpeed",
        f"{PPO} peft@actor.peft=adalora zero@actor.zero=stage2",
        ["actor.peft", "ADALORA", "write zero@actor.zero=none"],
    ),
    (
        "what vLLM cannot serve",
        f"{PPO} peft@actor.peft=prefix rollout=vllm",
        ["rollout=vllm", "PREFIX_TUNING", "write rollout=auto"],
    ),
    (
        "no such fallback",
        f"{PPO} peft@actor.peft=prefix rollout.fallback=none",
        ["rollout.fallback=none", "hf or error"],
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    write_data(folder)
    return folder


@pytest.mark.parametrize(("arguments", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_method_that_cannot_be_is_refused(folder, base, capsys, monkeypatch, arguments, words):
    for _ in stand_in(folder, monkeypatch):
        refused(capsys, arguments.format(base=base), words)
