"""Which numbers a setting takes: a value outside is refused with its key and what to write. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.config.choices import FOR_LORA
from align.errors import AlignError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `above` leaves `low` out."""

    low: float
    high: float = math.inf
    above: bool = False

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def words(self) -> str:
        if self.low == -math.inf:
            return "a finite number"
        if self.above:
            return f"a number above {self.low:g}" + (f" and at most {self.high:g}" if self.high < math.inf else "")
        return f"a number from {self.low:g} to {self.high:g}" if self.high < math.inf else f"{self.low:g} or more"


COUNT = Range(1)
FROM_ZERO = Range(0)


class LearningRate(Range):
    """A rate, or LoRA's (`lora:2e-4`), from which another method's follows."""

    def holds(self, value: Any) -> bool:
        if isinstance(value, str) and value.startswith(FOR_LORA):
            try:
                value = float(value.removeprefix(FOR_LORA))
            except ValueError:
                return False
        return super().holds(value)

    def words(self) -> str:
        return f"{super().words()}, or {FOR_LORA}NUMBER"


class CountOrAuto(Range):
    """A whole number, or `auto`: worked out from what is there."""

    def holds(self, value: Any) -> bool:
        return value == "auto" or super().holds(value)

    def words(self) -> str:
        return f"a whole number, {super().words()}, or auto"


PROMPT = CountOrAuto(1)
RATE = LearningRate(0, 1, above=True)
SHARE = Range(0, 1)
RATIO = Range(0, 1000, above=True)

TRAINED = {
    "learning_rate": RATE, "loraplus_lr_ratio": RATIO, "epochs": Range(0, above=True), "batch_size": COUNT,
    "max_length": Range(2),
}  # fmt: skip
NUMBERS: dict[str, dict[str, Range]] = {
    "pretrain": {
        "steps": COUNT, "batch_size": COUNT, "max_length": Range(2), "learning_rate": Range(0, 1, above=True),
        "weight_decay": FROM_ZERO,
        "vocab_size": Range(260),  # 256 bytes, EOS, pad and two turn marks
        "hidden_size": COUNT, "layers": COUNT, "heads": COUNT, "intermediate_size": COUNT, "max_positions": Range(2),
    },
    "sft": {**TRAINED, "parallel_adapters": COUNT, "early_stopping": COUNT},
    "preferences": {"samples": COUNT, "prompts": COUNT, "max_prompt_tokens": PROMPT},
    "best_of": {**TRAINED, "parallel_adapters": COUNT, "early_stopping": COUNT},
    "rm": {**TRAINED, "members": COUNT, "norm_samples": FROM_ZERO, "label_smoothing": Range(0, 0.5)},
    "dpo": {**TRAINED, "beta": Range(0, above=True)},
    "kto": {**TRAINED, "beta": Range(0, above=True), "batch_size": Range(2)},
    "ppo": {
        "steps": COUNT, "batch_size": COUNT, "minibatches": COUNT, "micro_batch_size": COUNT,
        "micro_batch_tokens": COUNT, "epochs": COUNT, "max_prompt_tokens": PROMPT, "dynamic_sampling": FROM_ZERO,
        "clip": Range(0, 10, above=True), "value_clip": Range(0, 100, above=True),
        "kl_coef": Range(0, 100), "gamma": SHARE, "lam": SHARE, "max_grad_norm": FROM_ZERO,
        "score_clip": Range(0, above=True), "missing_eos_penalty": FROM_ZERO, "missing_eos_score": Range(-math.inf),
        "kl_target": Range(0, above=True), "kl_horizon": COUNT, "target_kl": Range(0, above=True),
        "importance_cap": Range(0, above=True), "critic_warmup": FROM_ZERO,
        "eval_every": FROM_ZERO, "eval_prompts": COUNT, "save_every": FROM_ZERO, "show_every": FROM_ZERO,
    },
    "evaluate": {"samples": COUNT, "batch_size": COUNT, "show": FROM_ZERO},
    "actor": {"learning_rate": RATE, "loraplus_lr_ratio": RATIO, "warmup_steps": FROM_ZERO},
    "critic": {
        "learning_rate": RATE, "loraplus_lr_ratio": RATIO, "warmup_steps": FROM_ZERO, "trunk_gradient": Range(0, 100),
    },
    "rollout": {
        "temperature": Range(0, 100, above=True), "max_new_tokens": COUNT, "samples_per_prompt": COUNT,
        "batch_size": COUNT, "kv_cache_mib": COUNT,
    },
}  # fmt: skip
LISTED = {"sft": ("learning_rate",), "best_of": ("learning_rate",)}
"""Numbers that may be a list instead."""
PPO_WORDS = {
    "kl_in": ("reward", "loss"), "kl_estimator": ("auto", "k1", "k2", "k3"), "old_logp": ("auto", "trainer", "engine"),
    "importance_correction": ("none", "token", "sequence"), "importance_how": ("truncate", "mask"),
    "loss_aggregation": (
        "token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "fixed_length",
    ),
}  # fmt: skip


def check_numbers(key: str, values: Mapping[str, Any]) -> None:
    """Every number of the node `key` alone; what is not set, or not there, is left to its owner."""
    for name, wanted in NUMBERS.get(key, {}).items():
        value = values.get(name)
        if name in LISTED.get(key, ()):
            each = value if isinstance(value, list) and value else [value]
            if not all(wanted.holds(one) for one in each):
                raise AlignError(f"{key}.{name}={value}: write {wanted.words()}, or a list of such, an adapter each")
        elif value is not None and not wanted.holds(value):
            raise AlignError(f"{key}.{name}={value}: write {wanted.words()}")


def check_pretrain(values: Mapping[str, Any]) -> None:
    """What must fit together in a model made here."""
    hidden, heads = values["hidden_size"], values["heads"]
    if hidden % heads or (hidden // heads) % 2:
        fitting = [n for n in range(1, hidden // 2 + 1) if hidden % n == 0 and (hidden // n) % 2 == 0]
        near = min(fitting, key=lambda n: (abs(n - heads), -n), default=None)
        instead = f"pretrain.heads={near}" if near else "an even pretrain.hidden_size"
        raise AlignError(
            f"pretrain.heads={heads} does not divide pretrain.hidden_size={hidden} into heads of an even size\n"
            f"  write {instead}"
        )
    if values["max_length"] > values["max_positions"]:
        raise AlignError(
            f"pretrain.max_length={values['max_length']} is more than pretrain.max_positions="
            f"{values['max_positions']}\n  write pretrain.max_positions={values['max_length']} or more"
        )


def check_ppo(values: Mapping[str, Any]) -> None:
    """Words of PPO's options, and what must fit together in them."""
    for name, words in PPO_WORDS.items():
        if values[name] not in words:
            raise AlignError(f"ppo.{name}={values[name]}: write one of {', '.join(words)}")
    if values["kl_in"] == "loss" and values["kl_estimator"] == "k1":
        raise AlignError(
            "ppo.kl_estimator=k1 with ppo.kl_in=loss: the gradient of k1 is 0 on average\n  write ppo.kl_estimator=k3"
        )
    if values["kl_target"] is not None and values["kl_coef"] == 0:
        raise AlignError(
            "ppo.kl_target multiplies ppo.kl_coef, and ppo.kl_coef=0 stays 0\n  write ppo.kl_coef=0.05, to begin with"
        )
    if values["importance_correction"] != "none" and values["old_logp"] == "engine":
        raise AlignError(
            f"ppo.importance_correction={values['importance_correction']} with ppo.old_logp=engine: the ratio already "
            "starts from the engine\n  write ppo.old_logp=trainer, or ppo.importance_correction=none"
        )
    if values["missing_eos_score"] is not None and values["missing_eos_penalty"]:
        raise AlignError(
            f"ppo.missing_eos_score={values['missing_eos_score']} replaces the score that "
            f"ppo.missing_eos_penalty={values['missing_eos_penalty']} is taken off\n"
            "  write one of them: ppo.missing_eos_penalty=null or ppo.missing_eos_score=null"
        )


def check_dynamic_sampling(bound: int, samples_per_prompt: int) -> None:
    if bound and samples_per_prompt == 1:
        raise AlignError(
            f"ppo.dynamic_sampling={bound} compares the samples of one prompt, and rollout.samples_per_prompt=1\n"
            "  write rollout.samples_per_prompt=4, or ppo.dynamic_sampling=0"
        )


def check_batches(ppo: Mapping[str, Any], samples_per_prompt: int, min_samples: int) -> None:
    """What must fit together in a PPO step."""
    size = ppo["batch_size"]
    if samples_per_prompt < min_samples:
        raise AlignError(
            f"rollout.samples_per_prompt={samples_per_prompt}: this advantage compares the samples of one prompt, so "
            f"it needs {min_samples} or more\n  write rollout.samples_per_prompt=4"
        )
    check_dynamic_sampling(ppo["dynamic_sampling"], samples_per_prompt)
    if size % samples_per_prompt:
        near = max(round(size / samples_per_prompt), 1) * samples_per_prompt
        raise AlignError(
            f"ppo.batch_size={size} completions cannot be divided by rollout.samples_per_prompt="
            f"{samples_per_prompt}\n  write ppo.batch_size={near}"
        )
    if ppo["minibatches"] > size:
        raise AlignError(
            f"ppo.minibatches={ppo['minibatches']} is more than ppo.batch_size={size}\n  write {size} or less"
        )
    if size % ppo["minibatches"]:
        fitting = [n for n in range(1, size + 1) if size % n == 0]
        near = min(fitting, key=lambda n: (abs(n - ppo["minibatches"]), -n))
        step = math.lcm(ppo["minibatches"], samples_per_prompt)
        raise AlignError(
            f"ppo.minibatches={ppo['minibatches']} does not divide ppo.batch_size={size}\n"
            f"  write ppo.minibatches={near}, or ppo.batch_size={max(round(size / step), 1) * step}"
        )
