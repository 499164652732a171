"""Which engine makes the rollouts, told from config.json."""

from __future__ import annotations

import pytest
from peft import LoraConfig
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

from align.config import RolloutOptions
from align.errors import AlignError
from align.roles.alone import load_roles
from align.rollout import choice as auto

LLAMA = {"hidden_size": 128, "num_attention_heads": 4, "max_position_embeddings": 100}


@pytest.fixture
def with_vllm(monkeypatch):
    monkeypatch.setattr(auto, "installed", lambda package: True)
    monkeypatch.setattr(auto, "require", lambda package, asked, instead: None)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (LLAMA, 32),
        ({"n_embd": 768, "n_head": 12}, 64),
        ({"hidden_size": 1024, "num_attention_heads": 16, "head_dim": 128}, 128),
        ({"hidden_size": 128, "num_attention_heads": 4, "head_dim": None}, 32),
        ({}, None),
    ],
)
def test_head_size_comes_from_config(model, size):
    assert auto.head_size(model) == size


def test_an_adapter_on_a_served_head_size_is_served(with_vllm):
    assert auto.unserved(LLAMA, on_cpu=True) == ""


def test_a_head_size_of_16_is_served_on_a_gpu_alone(with_vllm):
    small = {**LLAMA, "num_attention_heads": 8}
    assert "head size of 16" in auto.unserved(small, on_cpu=True)
    assert auto.unserved(small, on_cpu=False) == ""


def test_a_missing_vllm_is_said_first(monkeypatch):
    monkeypatch.setattr(auto, "installed", lambda package: False)
    assert auto.unserved(LLAMA, on_cpu=True) == "vLLM is not installed"


def test_asking_for_a_missing_vllm_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("align.installed.installed", lambda package: False)
    with pytest.raises(AlignError, match=r"rollout=vllm: vllm is not installed\n  pip install .* rollout=hf"):
        auto.check_rollout("vllm", LLAMA, on_cpu=True)


def test_asking_for_vllm_where_it_cannot_serve_is_refused(with_vllm):
    small = {**LLAMA, "num_attention_heads": 8}
    with pytest.raises(AlignError, match=r"rollout=vllm: .*head size of 16.*\n  use rollout=hf"):
        auto.check_rollout("vllm", small, on_cpu=True)


@pytest.mark.vllm
def test_a_class_that_vllm_takes_from_the_trainer_is_not_served():
    """It decorates the class, and the trainer's own model of it fails then."""
    pytest.importorskip("vllm")
    assert "serves GPTNeoXForCausalLM by the trainer's own class" in auto.unserved_class(
        {"architectures": ["GPTNeoXForCausalLM"]}
    )
    assert auto.unserved_class({"architectures": ["LlamaForCausalLM"]}) == ""
    assert auto.unserved_class({"architectures": ["MptForCausalLM"]}) == "vLLM (0.32) has no class for MptForCausalLM"


@pytest.mark.parametrize("engine", ["auto", "hf"])
def test_auto_and_hf_are_never_refused(engine):
    auto.check_rollout(engine, {"n_embd": 10, "n_head": 5}, on_cpu=True)


def test_an_unknown_engine_is_refused():
    with pytest.raises(AlignError, match=r"rollout\.engine=sglang: use rollout=auto"):
        auto.check_rollout("sglang", LLAMA, on_cpu=True)


@pytest.mark.vllm
@pytest.mark.parametrize("method", [None, LoraConfig(target_modules="all-linear")], ids=["all weights", "lora"])
def test_where_vllm_fails_auto_goes_on_with_transformers(tmp_path, tokenizer, method):
    """vLLM 0.32 on CPU fails on the latent attention of DeepSeek, in its kernels."""
    pytest.importorskip("vllm")
    architecture = DeepseekV2Config(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        kv_lora_rank=32, q_lora_rank=32, qk_rope_head_dim=32, qk_nope_head_dim=32, v_head_dim=32,
        first_k_dense_replace=1,
    )  # fmt: skip
    DeepseekV2ForCausalLM(architecture).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_roles(str(tmp_path), method, learning_rate=1e-2, steps=1)[0].actor
    said = []

    def choose(**options):
        return auto.choose(
            RolloutOptions(**{"engine": "auto", **options}), policy, str(tmp_path), tokenizer, 32, said.append
        )

    assert choose().name == "hf"
    assert said[0].startswith("rollouts by transformers: vLLM does not serve this model: ") and "\n" not in said[0]
    for refusing in ({"engine": "vllm"}, {"fallback": "error"}):
        with pytest.raises(AlignError, match=r"rollout=vllm: .*\n  use rollout=hf"):
            choose(**refusing)
