"""What methods with a state of their own do beside their parameters; most do nothing.

The loops call these hooks for every method alike and know none by name. A method of one's own registers its hooks:

    align.peft.stateful.HOOKS["MY_METHOD"] = MyHooks()
"""

from __future__ import annotations

from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from align.peft.adalora import AdaLora
from align.peft.hooks import Hooks

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
    """What the method adds to the loss of an optimizer step, once."""
    if isinstance(model, PeftModel) and name is not None:
        return hooks_of(model.peft_config[name]).extra_loss(model, name)
    return None
