"""Trainable parameters against the papers and on two models of 7 and 8 billion, on the meta device."""

from __future__ import annotations

import pytest
import torch
from methods import method
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, OPTConfig, PreTrainedConfig

from align.peft.stateful import planned

BLOOMZ_7B1 = BloomConfig(vocab_size=250880, hidden_size=4096, n_layer=30, n_head=32)
LLAMA_3_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8,
)  # fmt: skip
GPT_3 = OPTConfig(
    vocab_size=50257, hidden_size=12288, word_embed_proj_dim=12288, ffn_dim=4 * 12288, num_hidden_layers=96,
    num_attention_heads=96, max_position_embeddings=2048,
)  # fmt: skip
"""OPT has GPT-3's layers, and query and value apart."""


def counted(shape: PreTrainedConfig, config) -> tuple[int, int]:
    """Parameters that train, and those of the model under them."""
    config = planned(config, 100, "sft")
    config.task_type = "CAUSAL_LM"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
        whole = model.num_parameters()
        return get_peft_model(model, config).get_nb_trainable_parameters()[0], whole


def test_lora_on_the_shape_of_gpt_3():
    """Hu et al. 2021: rank 4 on query and value is about 10,000 times fewer parameters; 1.2 TB become 350 GB."""
    trained, whole = counted(GPT_3, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    assert trained == 96 * 2 * 2 * 4 * 12288
    assert whole == pytest.approx(175e9, rel=0.01)
    assert 9_000 < whole / trained < 10_000
    adam, half = 2 * 4 + 4, 2  # moments and gradient in float32; a weight in half precision
    lora = half * whole + (half + adam) * trained
    assert lora == pytest.approx(350e9, rel=0.01)
    assert 3 < 1.2e12 / lora < 4
    assert adam * whole / (adam * trained) > 9_000


@pytest.mark.parametrize(
    ("name", "settings", "bloomz", "llama"),
    [
        ("lora", (), 31.5, 41.9),
        ("lora_r1", (), 1.97, 2.62),
        ("dora", (), 32.6, 43.3),
        ("adalora", (), 23.6, 31.5),
        ("ia3", (), 0.86, 0.52),
        ("ln_tuning", (), 0.50, 0.27),
        ("lokr", (), 0.97, 1.34),
        ("oft", (), 13.3, 19.3),
        ("miss", (), 17.7, 22.0),
        ("p_tuning_v2", (), 4.9, 1.3),
        ("prefix", ("peft.encoder_hidden_size=512",), 128, 34.2),
        ("p_tuning", ("peft.encoder_hidden_size=512",), 4.5, 4.5),
        ("prompt", (), 0.08, 0.08),
        ("houlsby", ("peft.reduction_factor=64",), 31.7, 33.8),
        ("pfeiffer", ("peft.reduction_factor=64",), 15.9, 16.9),
        ("parallel", ("peft.reduction_factor=8",), 126, 134),
    ],
)
def test_trainable_parameters_in_millions(name, settings, bloomz, llama):
    for shape, millions in ((BLOOMZ_7B1, bloomz), (LLAMA_3_8B, llama)):
        digits = 2 if millions < 10 and millions not in (4.9, 1.3, 4.5) else (1 if millions < 100 else 0)
        assert round(counted(shape, method(name, *settings))[0] / 1e6, digits) == pytest.approx(
            millions, abs=10**-digits / 2
        )
