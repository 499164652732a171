"""The tokenizer of a model, ready for training: EOS required, a pad that never hides EOS."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from align.errors import AlignError
from align.library_variables import without_network
from align.roles.folder import base_home, tokenizer_home


def copy_tokenizer(path: str, folder: Path) -> None:
    """The tokenizer at `path`, if there is one, into `folder` as it is."""
    with suppress(OSError, ValueError):
        AutoTokenizer.from_pretrained(tokenizer_home(path)).save_pretrained(folder)


def load_tokenizer(path: str, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`, refused without an EOS token; a missing pad becomes EOS (masks tell them apart)."""
    home = tokenizer_home(path)
    offline = not Path(home).exists() and without_network()
    try:
        tokenizer = AutoTokenizer.from_pretrained(home)
    except (OSError, ValueError) as error:
        if offline:
            raise AlignError(
                f"{key}: {home} is no folder here, and no model of that name in the cache; the hub cannot be reached\n"
                f"  use {key}=FOLDER, or try again with a network"
            ) from error
        reason = str(error).splitlines()[0]
        raise AlignError(f"{key}: no tokenizer can be loaded from {path}: {reason}") from error
    check_embedded(tokenizer, path, key)
    if tokenizer.eos_token_id is None:
        raise AlignError(
            f"{key}: the tokenizer of {path} has no EOS token, so no completion could ever end\n"
            '  use "eos_token" into its tokenizer_config.json'
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_embedded(tokenizer: PreTrainedTokenizerBase, path: str, key: str) -> None:
    """Raise AlignError for a tokenizer with more tokens than the model's embedding has rows."""
    file = Path(base_home(path)) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows = config.get("vocab_size")
    if rows is not None and len(tokenizer) > rows:
        raise AlignError(
            f"{key}: the tokenizer of {path} has {len(tokenizer)} tokens, and the model an embedding of {rows} rows\n"
            f"  use model.resize_token_embeddings({len(tokenizer)}) and save the model, or its earlier tokenizer"
        )


def pad_apart_from_eos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer with a pad token other than EOS, for code that finds the last token by its id.

    transformers' sequence classification scores the last id that is not pad: with pad = EOS it would
    score the token before EOS, and EOS would never be learned. Every sequence ends with EOS, so any
    other token serves.
    """
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer
    special = [tokenizer.unk_token, tokenizer.bos_token, *tokenizer.convert_ids_to_tokens([0, 1])]
    tokenizer.pad_token = next(t for t in special if t is not None and t != tokenizer.eos_token)
    return tokenizer


def stop_ids(path: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends a completion: those of generation_config.json and the tokenizer's EOS."""
    home = base_home(path)
    ids: list[int] = [tokenizer.eos_token_id]
    for load in (GenerationConfig, AutoConfig):
        try:
            eos = load.from_pretrained(home).eos_token_id
        except OSError:
            continue
        ids += eos if isinstance(eos, list) else [] if eos is None else [eos]
    return tuple(sorted(set(ids)))
