"""Methods that cannot be as they are asked for: a clear word, before a model loads where it can be known."""

from __future__ import annotations

import pytest
from command_line import PPO, SFT, refused, stand_in, write_data
from methods import method
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

WRONG = [
    ("unknown field", f"{SFT} peft@sft.peft=oft +sft.peft.blocks=3", ["sft.peft", "blocks"]),
    ("rank 0", f"{SFT} peft@sft.peft=lora sft.peft.r=0", ["sft.peft", "r"]),
    (
        "targets that match nothing",
        f"{SFT} peft@sft.peft=ia3 sft.peft.target_modules=[nowhere] sft.peft.feedforward_modules=[]",
        ["sft.peft.target_modules", "nowhere matches nothing", "q_proj"],
    ),
    (
        "one target of two that matches nothing",
        f"{SFT} peft@sft.peft=lora sft.peft.target_modules=[q_proj,v_projj]",
        ["sft.peft.target_modules: v_projj matches nothing", "nearest: v_proj", "o_proj, gate_proj"],
    ),
    (
        "a module that is to train in full and is not there",
        f"{PPO} peft@actor.peft=lora +actor.peft.modules_to_save=[lm_heat]",
        ["actor.peft.modules_to_save: lm_heat matches nothing", "lm_head"],
    ),
    (
        "a pattern that matches nothing",
        f"{PPO} peft@critic.peft=lora critic.peft.target_modules=.*zz",
        ["critic.peft", "not found in the base model", "its linear layers: q_proj"],
    ),
    (
        "a layer that is not there",
        f"{SFT} peft@sft.peft=lora sft.peft.target_modules=[q_proj] +sft.peft.layers_to_transform=[7]",
        ["sft.peft.layers_to_transform=[7]", "use layers from 0 to"],
    ),
    (
        "weights that a method cannot sit on",
        f"{SFT} peft@sft.peft=loha +sft.peft.quantize=nf4",
        ["sft.peft: PEFT has no LOHA for a base of quantised weights", "use peft@sft.peft=qlora"],
    ),
    (
        "a start that takes a part out of quantised weights",
        f"{PPO} peft@actor.peft=qlora +actor.peft.init_lora_weights=pissa",
        ["actor.peft: init_lora_weights=pissa needs a base in full precision"],
    ),
    (
        "codes that are not known",
        f"{SFT} peft@sft.peft=qlora sft.peft.quantize=nf5",
        ["sft.peft.quantize=nf5", "nf4 or fp4"],
    ),
    (
        "LoRA+ without LoRA",
        f"{PPO} peft@actor.peft=houlsby actor.loraplus_lr_ratio=16",
        ["actor.loraplus_lr_ratio=16", "use peft@actor.peft=lora, or actor.loraplus_lr_ratio=null"],
    ),
    (
        "tokens of a tied head",
        f"{SFT} peft@sft.peft=trainable_tokens sft.peft.token_indices=[5]",
        ["tie_word_embeddings"],
    ),
    ("no tokens given", f"{SFT} peft@sft.peft=trainable_tokens", ["sft.peft.token_indices is not set"]),
    (
        "steps that contradict the plan of SFT",
        f"{SFT} peft@sft.peft=adalora sft.peft.total_step=7 sft.args.max_steps=3",
        ["sft.peft.total_step=7", "3 optimizer steps", "use sft.peft.total_step=null"],
    ),
    (
        "steps that contradict the plan of PPO",
        f"{PPO} peft@actor.peft=adalora actor.peft.total_step=7 ppo.steps=2 ppo.epochs=1 ppo.minibatches=1",
        ["actor.peft.total_step=7", "2 optimizer steps"],
    ),
    (
        "steps that packing changes",
        f"{SFT} peft@sft.peft=adalora sft.args.packing=true",
        ["sft.args.packing=true", "ADALORA plans by the number", "max_steps=N"],
    ),
    (
        "AdaLoRA under ZeRO-3",
        f"{PPO} peft@actor.peft=adalora zero@actor.zero=stage3",
        ["actor.peft", "ADALORA", "use zero@actor.zero=stage2"],
    ),
    (
        "what vLLM cannot serve",
        f"{PPO} peft@actor.peft=prefix rollout=vllm",
        ["rollout=vllm", "PREFIX_TUNING", "use rollout=auto"],
    ),
    (
        "a stage whose adapter cannot merge, before it runs",
        "experiment=tiny debug=default peft@sft.peft=houlsby peft@rm.peft=houlsby",
        ["actor.peft: actor starts from what sft makes with BOTTLENECK", "actor.path=FOLDER"],
    ),
    (
        "a reward model's that the critic cannot go on with",
        "experiment=tiny debug=default peft@rm.peft=prefix",
        ["critic.peft: critic starts from what rm makes with PREFIX_TUNING"],
    ),
    (
        "no such fallback",
        f"{PPO} peft@actor.peft=prefix rollout.fallback=none",
        ["rollout.fallback=none", "hf, error"],
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


@pytest.fixture(scope="module")
def stranger(base, tmp_path_factory):
    """The folder of an adapter that names a base of another shape than it was made on."""
    folder = tmp_path_factory.mktemp("stranger")
    config = AutoConfig.from_pretrained(base)
    config.intermediate_size = 96
    made = get_peft_model(AutoModelForCausalLM.from_config(config), method("lora"))
    made.peft_config["default"].task_type, made.peft_config["default"].base_model_name_or_path = "CAUSAL_LM", base
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", [f"{SFT} sft.path={{stranger}}", f"{PPO} actor.path={{stranger}}"])
def test_an_adapter_of_another_base_shows_name_and_shapes(folder, base, stranger, capsys, monkeypatch, command):
    words = ["was made on another base", "down_proj.lora_A.weight is (16, 96) there and would be (16, 128) here"]
    for _ in stand_in(folder, monkeypatch):
        refused(capsys, command.format(base=base, stranger=stranger), words)
