"""A tiny random model, made once a session, and a folder to stand in with data and reward functions."""

# ruff: noqa: E402
import os

from align.library_variables import prepare

prepare()  # before torch reads the environment
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that spin while they wait slow a busy machine down tenfold

from pathlib import Path

import pytest
import torch
from shell import stand_in, write_data
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "a red kite flies over the quiet harbour while seven old sailors count their ropes and sing of rain ".split()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random Llama of 2 layers, with its tokenizer."""
    texts = [" ".join(WORDS[i:] + WORDS[:i] + [f"{i * j}." for j in range(9)]) for i in range(len(WORDS))] * 5
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=768, special_tokens=["<end>", "<pad>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<end>", pad_token="<pad>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=128, max_position_embeddings=256, initializer_range=0.15, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of its own to stand in, with data."""
    write_data(tmp_path)
    yield from stand_in(tmp_path, monkeypatch)
