"""Tiny random models, made once a session: a language model with its tokenizer, and a reward model."""

# ruff: noqa: E402
import os

from align.library_variables import prepare

prepare()  # before torch, vLLM and DeepSpeed read the environment
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # waiting threads spin: on a busy machine each test takes ten times as long

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
)

from align.stages.pretrain.spec import PretrainOptions
from align.stages.pretrain.stage import train_tokenizer

settings.register_profile("unhurried", deadline=None)  # a busy machine is no reason to fail
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left with one at the end."""
    slow = Counter(item.path for item in items if any(map(item.get_closest_marker, ("slow", "vllm"))))
    items.sort(key=lambda item: -slow[item.path])


WORDS = "a red kite flies over the quiet harbour while seven old sailors count their ropes and sing of rain "


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE with EOS, pad and turn marks."""
    words = WORDS.split()
    texts = [" ".join(words[i:] + words[:i] + [f"{i * j}." for j in range(9)]) for i in range(len(words))] * 5
    return train_tokenizer(texts, PretrainOptions(vocab_size=768))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    """The folder of a random Llama, 2 layers of 2 heads of 32, wild enough for any change to show."""
    torch.manual_seed(0)
    return _saved(LlamaForCausalLM(_architecture(tokenizer)), tokenizer, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def untied_base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    """As `base`, with a head of its own."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(_architecture(tokenizer, tie_word_embeddings=False))
    return _saved(model, tokenizer, tmp_path_factory.mktemp("untied"))


@pytest.fixture(scope="session")
def base_of(base: str, untied_base: str) -> Callable[[str], str]:
    """base_of(method) -> a base that it can sit on."""
    return lambda name: untied_base if name == "trainable_tokens" else base


@pytest.fixture(scope="session")
def reward_base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    """The folder of a random reward model: the same shape, with a score."""
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(_architecture(tokenizer, num_labels=1))
    return _saved(model, tokenizer, tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="session")
def lora_model(base: str) -> Callable[..., PeftModel]:
    """lora_model(seed, dtype, path, **options of LoraConfig) -> the base with a random LoRA, to train."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float32, path: str = base, **options: Any) -> PeftModel:
        plain = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).requires_grad_(False).eval()
        settings = {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": "all-linear",
            "task_type": "CAUSAL_LM",
            **options,
        }
        model = get_peft_model(plain, LoraConfig(**settings))
        shuffle(model, seed)
        return model

    return make


@pytest.fixture(scope="session")
def shake() -> Callable[[PeftModel, int], None]:
    """shake(model, seed) gives every LoRA matrix new random weights, in place."""
    return shuffle


def shuffle(model: PeftModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def _architecture(tokenizer: PreTrainedTokenizerBase, **more: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{"tie_word_embeddings": True, **more},
    )


def _saved(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
