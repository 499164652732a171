"""Roles for a script of one's own, and a policy that does not train: plain torch, one device, no Hydra."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig
from transformers import PreTrainedTokenizerBase

from align.engine.linear import give_kernel
from align.engine.plain import PlainEngine
from align.roles.backbone import Backbone
from align.roles.folder import CAUSAL, inspect
from align.roles.loading import load_frozen
from align.roles.placement import Placement, RunContext
from align.roles.policy import TrainedPolicy
from align.roles.roles import Roles
from align.roles.specs import Actor, Critic, Reference
from align.roles.tokenizer import load_tokenizer, stop_ids


def load_policy(path: str, key: str, device: torch.device) -> TrainedPolicy:
    """The policy at `path` alone, in float32, to write and score, not to train. An adapter is merged if it can be.

    Raises AlignError, naming `key`, where `path` holds no language model.
    """
    model = load_frozen(inspect(path, key, CAUSAL))
    give_kernel(model)
    return TrainedPolicy(model, PlainEngine(Backbone(model).to(device)), device)


def load_roles(
    path: str,
    peft: PeftConfig | None = None,
    learning_rate: float = 1e-5,
    critic: str | None = None,
    critic_path: str | None = None,
    device: str = "cpu",
    micro_batch_size: int = 8,
    out: str | None = None,
    steps: int | None = None,
    loraplus_lr_ratio: float | None = None,
) -> tuple[Roles, PreTrainedTokenizerBase, tuple[int, ...]]:
    """Actor and reference (and a critic) from one model; its tokenizer; its stop ids.

    In full (`peft=None`) or with a PEFT method; weights in float32. `critic` is head, adapter, own, auto or None;
    it starts from `critic_path`, else from `path` with a head of zeros. `out` (a temporary folder unless given)
    takes a merged base, should the folder at `path` hold another adapter than the settings name; `steps` is the number
    of optimizer steps to come, which AdaLoRA plans by.
    Raises AlignError where `path` holds no language model.
    """
    with folder_or_temporary(out) as home:
        context = RunContext(
            torch.device(device),
            torch.float32,
            lambda m, rates, norm, zero: PlainEngine(m, rates, norm),
            home,
            steps=steps,
        )
        plus = {"loraplus_lr_ratio": loraplus_lr_ratio}
        placement = Placement(context, Actor(path, "auto", learning_rate, peft, None, **plus))
        Reference("auto", None).place(placement)
        if critic is not None:
            Critic(critic_path or path, "auto", learning_rate, peft, None, critic, **plus).place(placement)
    tokenizer = load_tokenizer(path, "path")
    return placement.roles(micro_batch_size), tokenizer, stop_ids(path, tokenizer)


@contextmanager
def folder_or_temporary(out: str | None) -> Iterator[Path]:
    """The folder `out`, else a temporary one, which stays only if something was put there: adapters name their base."""
    if out is not None:
        yield Path(out)
        return
    made = Path(tempfile.mkdtemp(prefix="align-"))
    try:
        yield made
    finally:
        if not any(made.iterdir()):
            made.rmdir()
