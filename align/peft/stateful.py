"""Hooks for methods that keep a state beside their parameters; most do nothing.

The loops call these hooks for every method alike and know none by name. A user's method registers its hooks:

    align.peft.stateful.HOOKS["MY_METHOD"] = MyHooks()
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from align.errors import AlignError


class Hooks:
    needs_gradients = False
    """`on_step` reads gradients after the optimizer's step, and whole matrices: ZeRO up to stage 2."""
    one_trained = False
    """PEFT trains one adapter of this method a model."""

    def plan(self, config: PeftConfig, steps: int | None, key: str) -> PeftConfig:
        return config

    def on_step(self, model: PeftModel, name: str, step: int) -> None:
        pass

    def extra_loss(self, model: PeftModel, name: str) -> Tensor | None:
        return None


WARMUP, FINAL = 0.1, 0.3
"""Shares of the steps before pruning begins and after it ends, unless tinit and tfinal are given."""
OPEN = 10**9


def adalora(
    total_step: int | None = None, tinit: int | None = None, tfinal: int | None = None, **settings: Any
) -> AdaLoraConfig:
    """A peft.AdaLoraConfig whose steps, where None, are worked out from the run they are used in."""
    config = AdaLoraConfig(total_step=total_step or OPEN, tinit=tinit or 0, tfinal=tfinal or 0, **settings)
    given = {"total_step": total_step, "tinit": tinit, "tfinal": tfinal}
    config.left_open = {name for name, value in given.items() if value is None}
    return config


class AdaLora(Hooks):
    needs_gradients = True
    one_trained = True

    def plan(self, config: AdaLoraConfig, steps: int | None, key: str) -> AdaLoraConfig:
        """`total_step` is the run's number of optimizer steps; pruning starts and ends within it."""
        config = copy.deepcopy(config)
        left_open = getattr(config, "left_open", set())
        if steps is None:
            if "total_step" in left_open:
                raise AlignError(f"{key}.peft: AdaLoRA wants the number of optimizer steps: give total_step")
            steps = config.total_step
        if "total_step" in left_open:
            config.total_step = steps
        elif config.total_step != steps:
            raise AlignError(
                f"{key}.peft.total_step={config.total_step}, but this run makes {steps} optimizer steps\n"
                f"  use {key}.peft.total_step=null"
            )
        config.tinit = int(WARMUP * steps) if "tinit" in left_open else config.tinit
        config.tfinal = int(FINAL * steps) if "tfinal" in left_open else config.tfinal
        if config.tinit >= steps - config.tfinal:
            raise AlignError(
                f"{key}.peft: tinit={config.tinit} and tfinal={config.tfinal} leave none of {steps} optimizer steps "
                f"for pruning\n  use {key}.peft.tinit=null {key}.peft.tfinal=null"
            )
        return config

    def on_step(self, model: PeftModel, name: str, step: int) -> None:
        model.base_model.update_and_allocate(step)

    def extra_loss(self, model: PeftModel, name: str) -> Tensor | None:
        """orth_reg_weight times the mean over matrices of ‖P Pᵀ − 1‖, P the rows of A or the columns of B."""
        distances = [
            torch.linalg.matrix_norm(p @ p.T - torch.eye(len(p), device=p.device, dtype=p.dtype))
            for p in _singular_vectors(model, name)
        ]
        return model.peft_config[name].orth_reg_weight * torch.stack(distances).mean()


@contextmanager
def whole_ranks(config: PeftConfig) -> Iterator[None]:
    """Inside, an adapter is saved with the singular values that are 0, too: PEFT leaves their rows out, and reads a
    folder without them into layers that cannot go on."""
    if not isinstance(config, AdaLoraConfig):
        yield
        return
    pattern, config.rank_pattern = config.rank_pattern, None
    try:
        yield
    finally:
        config.rank_pattern = pattern


def _singular_vectors(model: PeftModel, name: str) -> list[Tensor]:
    mine = [(key, p) for key, p in model.named_parameters() if name in key.split(".")]
    return [p if "lora_A" in key else p.T for key, p in mine if "lora_A" in key or "lora_B" in key]


HOOKS: dict[str, Hooks] = {"ADALORA": AdaLora()}
NONE = Hooks()


def hooks_of(config: PeftConfig | None) -> Hooks:
    return NONE if config is None else HOOKS.get(config.peft_type.value, NONE)


def planned(config: PeftConfig | None, steps: int | None, key: str) -> PeftConfig | None:
    """The settings for a run of `steps` optimizer steps (None: not known); raises AlignError if they contradict it."""
    return config if config is None else hooks_of(config).plan(config, steps, key)


def on_step(model: PreTrainedModel | PeftModel, name: str | None, step: int) -> None:
    """After optimizer step number `step` (from 1) of adapter `name`, while the gradients are still there."""
    if isinstance(model, PeftModel) and name is not None:
        hooks_of(model.peft_config[name]).on_step(model, name, step)


def extra_loss(model: PreTrainedModel | PeftModel, name: str | None) -> Tensor | None:
    """Term that the method adds to the loss of an optimizer step, once; None for none."""
    if isinstance(model, PeftModel) and name is not None:
        return hooks_of(model.peft_config[name]).extra_loss(model, name)
    return None
