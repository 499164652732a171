"""Work for both sides of the benchmark: a tokenizer, 512 prompts of 16-64 tokens, random Llamas of three sizes.

    python benchmarks/fixtures.py FOLDER s

Only transformers, tokenizers and torch are imported, so that TRL's environments can use it, too. Weights are
random: what is measured is time and memory, not learning.
"""

from __future__ import annotations

import json
import math
import random
import sys
import sysconfig
from pathlib import Path

VOCABULARY = 8192
PAD, BOS, EOS = 0, 1, 2
SIZES = {"xs": (64, 256, 2, 2), "s": (256, 1024, 6, 4), "m": (512, 2048, 8, 8)}
"""Hidden size, size of the MLP, layers, heads: 1.2, 10.5 and 42 million parameters; xs is there for a trial."""
PROMPTS, SHORTEST, LONGEST = 512, 16, 64
NEVER = 1e-9
"""Probability of EOS where every response is to have all its tokens."""
EXPECTED_LENGTH = 24
"""Mean length of a response, were it not cut, of the policy that ends by itself."""


def make(folder: Path, size: str | None = None) -> Path:
    """Write tokenizer and prompts under `folder`, once, and the models of a size."""
    if not (folder / "ready").exists():
        _data(folder)
    if size is not None and not (folder / size / "ready").exists():
        _models(folder, size)
    return folder


def _data(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [file.read_text(errors="ignore") for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    tokenizer = _tokenizer(texts)
    tokenizer.save_pretrained(folder)
    (folder / "prompts.json").write_text(json.dumps(_prompts(tokenizer, texts[:60])))
    (folder / "ready").write_text("")


def _models(folder: Path, size: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    for name, model in {
        "policy": _policy(size, NEVER), "policy_eos": _policy(size, 1 / EXPECTED_LENGTH),
        "reward": _scalar(size, seed=1), "value": _scalar(size, seed=2),
    }.items():  # fmt: skip
        model.save_pretrained(folder / size / name)
        tokenizer.save_pretrained(folder / size / name)
    (folder / size / "ready").write_text("")


def _tokenizer(texts: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def _prompts(tokenizer, texts: list[str]) -> list[list[int]]:
    """Stretches of source code, their lengths uniform between the shortest and the longest."""
    draw = random.Random(0)
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    prompts = []
    for _ in range(PROMPTS):
        length = draw.randint(SHORTEST, LONGEST)
        first = draw.randrange(len(ids) - length)
        prompts.append(ids[first : first + length])
    return prompts


def _config(size: str, **more):
    from transformers import LlamaConfig

    hidden, mlp, layers, heads = SIZES[size]
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=2048, tie_word_embeddings=False,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, **more,
    )  # fmt: skip


def _policy(size: str, end: float):
    """A random policy whose EOS has about the probability `end` at every position, so that lengths are geometric.

    One channel of the residual stream is a constant that the head's row of EOS alone reads.
    """
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(_config(size)).eval()
    with torch.no_grad():
        head = model.lm_head.weight
        model.model.embed_tokens.weight[:, 0] = 4.0
        head[:, 0] = 0.0
        head[EOS] = 0.0
        hidden = model.model(torch.randint(3, VOCABULARY, (4, 64))).last_hidden_state
        others = (hidden @ head[3:].t()).logsumexp(-1).mean().item()
        head[EOS, 0] = (math.log(end / (1 - end)) + others) / hidden[..., 0].mean().item()
    return model


def _scalar(size: str, seed: int):
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(seed)
    return LlamaForSequenceClassification(_config(size, num_labels=1)).eval()


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), sys.argv[2] if sys.argv[2:] else None))
