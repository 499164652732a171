"""Learning rates by method: what a rate for LoRA is for another method, and LoRA+.

`lora:2e-4` as a learning rate means: 2e-4 for LoRA, and for another method what it wants where LoRA wants that.
"""

from __future__ import annotations

from peft import PeftConfig

from align.config.choices import FOR_LORA
from align.errors import AlignError

FULL = 0.1
"""Of LoRA's rate, for all weights: Schulman et al. 2025, thinkingmachines.ai/blog/lora, find 10 times for LoRA."""
TIMES_LORA = {"ADALORA": 3.0}
"""Of LoRA's rate, by PEFT's name of the method, 1 where it is not here: the best of a sweep by held-out loss on
experiment=tiny's fine-tuning (docs/log.md). A config of one's own says it by an attribute `times_lora`."""
IN_PPO = {"P_TUNING": 0.3}
"""The same in PPO, for actor and critic, where it differs: by true score on experiment=tiny (docs/log.md). A config of
one's own says it by `times_lora_in_ppo`."""
BARE_PREFIX = 3.0
"""Prefixes without an encoder; ten times was best in the sweep, and too much in PPO."""


def rate(value: float | str, method: PeftConfig | None, ppo: bool = False) -> float:
    """The learning rate that a setting means for a method (None: all weights), in PPO or in supervised training."""
    if not isinstance(value, str):
        return value
    return float(value.removeprefix(FOR_LORA)) * (times_lora_in_ppo if ppo else times_lora)(method)


def times_lora_in_ppo(method: PeftConfig | None) -> float:
    """Factor on LoRA's rate that a method wants in PPO."""
    usual = times_lora(method)
    return usual if method is None else getattr(method, "times_lora_in_ppo", IN_PPO.get(method.peft_type.value, usual))


def times_lora(method: PeftConfig | None) -> float:
    """Factor on LoRA's rate that a method wants in supervised training."""
    if method is None:
        return FULL
    if getattr(method, "prefix_projection", True) is False:
        return BARE_PREFIX
    return getattr(method, "times_lora", TIMES_LORA.get(method.peft_type.value, 1.0))


def check_loraplus(ratio: float | None, method: PeftConfig | None, key: str) -> None:
    """Raises AlignError where LoRA+ (Hayou et al. 2024, arXiv 2402.12354) finds no B that could learn faster than A."""
    if ratio is not None and (method is None or method.peft_type.value != "LORA"):
        what = "all weights train" if method is None else f"{method.peft_type.value} has no B beside an A"
        raise AlignError(
            f"{key}.loraplus_lr_ratio={ratio:g}: {what}\n  use peft@{key}.peft=lora, or {key}.loraplus_lr_ratio=null"
        )
