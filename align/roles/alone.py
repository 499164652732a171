"""Roles for a script of one's own: plain torch, one device, no Hydra."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from peft import PeftConfig
from transformers import PreTrainedTokenizerBase

from align.engine.plain import PlainEngine
from align.roles.roles import Roles
from align.roles.specs import Actor, Critic, Reference, Setting
from align.roles.tokenizer import load_tokenizer, stop_ids


def load_roles(
    path: str,
    peft: PeftConfig | None = None,
    learning_rate: float = 1e-5,
    critic: bool = False,
    device: str = "cpu",
    micro_batch_size: int = 8,
    out: str | None = None,
) -> tuple[Roles, PreTrainedTokenizerBase, tuple[int, ...]]:
    """Actor and reference (and a critic with a head of zeros) from one model; its tokenizer; its stop ids.

    In full (`peft=None`) or with a PEFT method; weights in float32. `out` (a temporary folder unless given)
    takes a merged base, should the folder at `path` hold another adapter than the one asked for.
    Raises AlignError where `path` holds no language model.
    """
    out = out or tempfile.mkdtemp(prefix="align-")
    setting = Setting(
        torch.device(device), torch.float32, lambda m, lr, norm, zero: PlainEngine(m, lr, norm), Path(out)
    )
    spec = Actor(path, "auto", learning_rate, peft, None)
    begun = spec.load(setting)
    reference = Reference("auto", None).build(begun, spec, setting)
    actor = spec.build(begun, setting)
    value = Critic(path, "auto", learning_rate, peft, None).build(setting) if critic else None
    tokenizer = load_tokenizer(path, "path")
    return Roles(actor, value, reference(actor), micro_batch_size), tokenizer, stop_ids(path, tokenizer)
