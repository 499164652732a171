"""vLLM reads the policies of architectures that it turns, packs or orders in another way. float32 on CPU."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from sharing import train
from transformers import AutoConfig, AutoModelForCausalLM

from align.roles.alone import load_roles

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

LORA = LoraConfig(target_modules="all-linear")
DORA = LoraConfig(target_modules="all-linear", use_dora=True)


@pytest.mark.parametrize(
    ("name", "method", "mode"),
    [
        ("gpt2", None, "full"),  # weights the other way round
        ("gpt2", LORA, "merged"),  # and vLLM has no LoRA for it
        ("gpt2", DORA, "merged"),
        ("gptj", None, "full"),  # queries, keys and values in one
        ("qwen3_moe", None, "full"),  # experts, which vLLM lays out anew
        ("qwen3_moe", LORA, "merged"),
        ("glm4", LORA, "merged"),  # LoRA on a layer that vLLM knows by its parts
    ],
)
def test_the_engine_is_the_trainer_after_each_update(name, method, mode, tokenizer, tmp_path):
    from align.rollout.vllm.rollout import VLLMRollout

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        name, vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, rotary_dim=16, intermediate_size=128, moe_intermediate_size=64,
        num_experts=4, num_experts_per_tok=2, initializer_range=0.1, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    roles = load_roles(str(tmp_path), method, learning_rate=3e-2, steps=2)[0]
    engine = VLLMRollout(str(tmp_path), roles.actor, 48, batch_size=8, kv_cache_mib=16)
    assert engine.mode == mode and not engine.shared
    assert engine.attach(roles.actor).gap < 1e-4
    for _ in range(2):
        train(roles, who=("actor",))
        assert engine.sync(roles.actor).gap < 1e-4
    engine.close()
