"""Our own decoding loop against transformers' `generate`, on kinds of models that keep their cache differently."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from align.rollout.decode import can_decode, decode
from align.rollout.hf import HFRollout, KeyedSampler, pad_left, to_generation
from align.rollout.keys import sample_key
from align.types import Sampling

V = 96
SMALL = {"vocab_size": V, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
LLAMA = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 1, "pad_token_id": 0, "head_dim": 32}
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=V, n_embd=64, n_layer=2, n_head=2, initializer_range=0.3),
    "neox": GPTNeoXConfig(**SMALL, intermediate_size=64),
    "opt": OPTConfig(**{**SMALL, "init_std": 0.3}, ffn_dim=64),
    "qwen2": Qwen2Config(**LLAMA),
    "window": MistralConfig(**LLAMA, sliding_window=5),
    "bloom": BloomConfig(vocab_size=V, hidden_size=64, n_layer=2, n_head=2, initializer_range=0.3),
    "gemma2": Gemma2Config(**LLAMA, tie_word_embeddings=False, sliding_window=5, query_pre_attn_scalar=32),
}
PROMPTS = [[5, 30, 7], [60, 61, 62, 63, 64, 65, 66], [10], [40, 41, 42, 43]] * 2
KEYS = [sample_key(0, "decode", 0, row, 0) for row in range(len(PROMPTS))]


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("stop", [(V,), tuple(range(0, V, 8))], ids=["even", "uneven"])
@torch.no_grad()
def test_tokens_are_those_of_generate(kind, stop):
    """float32, other batch sizes once rows have left: log-probabilities to 1e-4 of numbers up to 10."""
    model = model_of(CONFIGS[kind])
    assert can_decode(model)
    sampling = Sampling(1.0, 24, stop)
    ids_BP, mask_BP = pad_left(PROMPTS, 0)
    found = []
    for write in (decode, HFRollout(0)._generate):
        ids_BT, logp_BT = write(model, ids_BP, mask_BP, KeyedSampler(KEYS, sampling, torch.device("cpu")), sampling)
        found.append(to_generation(list(zip(ids_BT, logp_BT, strict=True)), sampling, 0, 0))
    ours, theirs = found
    assert ours.response_ids_BT.tolist() == theirs.response_ids_BT.tolist()
    torch.testing.assert_close(ours.logp_BT, theirs.logp_BT, rtol=0, atol=1e-4)
    assert bool(ours.finished_B.any()) == (stop != (V,))


@torch.no_grad()
def test_finished_rows_are_not_computed():
    model, rows = model_of(CONFIGS["qwen2"]), []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    sampling = Sampling(1.0, 24, tuple(range(0, V, 8)))
    ids_BP, mask_BP = pad_left(PROMPTS, 0)
    ids_BT, _ = decode(model, ids_BP, mask_BP, KeyedSampler(KEYS, sampling, torch.device("cpu")), sampling)
    assert rows == sorted(rows, reverse=True) and rows[0] == len(PROMPTS) and rows[-1] < len(PROMPTS)
    assert len(rows) == ids_BT.shape[1]


OTHERS = {
    "qwen3_next": Qwen3NextConfig(
        **LLAMA, layer_types=["linear_attention", "full_attention"], num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32, linear_num_key_heads=2, linear_num_value_heads=2,
        linear_key_head_dim=16, linear_value_head_dim=16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_with_inputs_or_a_state_of_its_own_is_left_to_generate(kind):
    assert not can_decode(model_of(OTHERS[kind]))
