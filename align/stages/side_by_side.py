"""Which adapters fine-tuning trains side by side, and what cannot be trained so; known before a model loads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftConfig

from align import config
from align.data.source import Source
from align.errors import AlignError
from align.peft.routes import changes_the_base
from align.peft.stateful import NONE, hooks_of
from align.peft.switch import routes_rows
from align.roles.adapter import for_task
from align.roles.folder import CAUSAL

SEEDS = 2**32
ARGS = {
    "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "max_steps", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "gradient_accumulation_steps", "gradient_checkpointing",
    "per_device_eval_batch_size", "completion_only_loss", "assistant_only_loss", "pad_to_multiple_of", "pad_token",
    "eos_token", "dataset_num_proc", "dataset_text_field", "data_seed", "dataloader_drop_last", "router_aux_loss_coef",
}  # fmt: skip
"""Arguments of SFTConfig that mean the same for adapters side by side."""
NEEDS_LOSS = ("reduce_lr_on_plateau", "greedy")
"""Schedules that are led by evaluation."""


@dataclass
class Member:
    """One adapter: the settings that a run of its own would have."""

    options: config.SFT
    data: Source
    seed: int
    differs: str
    """What it alone has, in words."""


def members(options: config.SFT, data: Source | list[Source], seed: int, key: str) -> list[Member]:
    """The adapters that stage `key` trains; one where nothing asks for more. Raises AlignError where counts disagree.

    Rates and sources that are listed go together, first with first, and share the seed; without a list it is the
    seeds that differ.
    """
    rates, sources = _listed(options.learning_rate), _listed(data)
    lengths = {f"{key}.learning_rate": len(rates), f"{key}.data.path": len(sources)}
    many = {name: length for name, length in lengths.items() if length > 1}
    count = options.parallel_adapters or max(lengths.values())
    for name, length in many.items():
        if length != count:
            other = next((f"{k} lists {n}" for k, n in many.items() if n == count), f"{key}.parallel_adapters={count}")
            raise AlignError(f"{name} lists {length}, but {other}\n  write as many, and {key}.parallel_adapters=null")
    if not many:
        check_seeds(f"{key}.parallel_adapters", count, seed)
    found = []
    for i in range(count):
        rate, source = rates[min(i, len(rates) - 1)], sources[min(i, len(sources) - 1)]
        words = [f"learning_rate {rate:g}"] if len(rates) > 1 else []
        words += [str(source.path)] if len(sources) > 1 else []
        own = seed if many else seed + i
        one = dataclasses.replace(options, learning_rate=rate, parallel_adapters=1)
        found.append(Member(one, source, own, ", ".join(words) or f"seed {own}"))
    return found


def check_seeds(key: str, count: int, seed: int) -> None:
    """There are so many seeds from `seed` on; `key` asks for them."""
    if seed + count > SEEDS:
        raise AlignError(f"{key}={count}: seeds end at {SEEDS - 1}\n  write seed={SEEDS - count}")


def check_method(options: config.SFT, found: list[Member], method: PeftConfig | None, key: str) -> None:
    """Raises AlignError for a method, or an argument of TRL's, that does not go with adapters side by side."""
    asked = f"{len(found)} adapters side by side"
    turns = f"one after the other: {alone(options, found, key)}"
    if why := why_not(method):
        raise AlignError(
            f"{key}.peft: {asked} need one frozen base, and {why}\n  write peft@{key}.peft=lora, or {turns}"
        )
    for name in sorted(options.args.keys() - ARGS):
        raise AlignError(f"{key}.args.{name} is not for {asked}\n  leave it out, or train them {turns}")
    if (kind := options.args.get("lr_scheduler_type")) in NEEDS_LOSS:
        raise AlignError(f"{key}.args.lr_scheduler_type={kind} is not for {asked}\n  write cosine, linear or constant")


def check_run(args: Any, found: list[Member], key: str) -> None:
    """Raises AlignError without held-out rows to choose by, and for several processes."""
    for one in {id(member.data): member for member in found}.values():
        if not one.data.load(key, one.seed).eval:
            raise AlignError(
                f"{key}.data: no rows are held out ({one.differs}), and they choose the best of {len(found)} adapters\n"
                f"  write {key}.data.eval_share=0.05, or {key}.data.eval_path=FILE"
            )
    if args.world_size > 1:
        raise AlignError(
            f"{key}: {len(found)} adapters side by side take one process\n  start align without a launcher"
        )


def why_not(method: PeftConfig | None) -> str:
    """Why adapters of this method cannot train in one pass ('' if they can)."""
    if method is None:
        return "without a method all weights train"
    kind = method.peft_type.value
    if hooks_of(method) is not NONE:
        return f"{kind} changes its adapter between steps, one a model"
    if not routes_rows(method):
        what = f"this {kind} (DoRA, target_parameters, tokens)" if type(method) is LoraConfig else kind
        return f"PEFT cannot send the rows of a batch through different adapters of {what}"
    if changes_the_base(method):
        return f"init_lora_weights={method.init_lora_weights} takes a part out of it"
    if saved := for_task(method, CAUSAL, "").modules_to_save:
        return f"modules_to_save={saved} trains modules of it"
    if type(method) is not LoraConfig:
        return ""
    if method.bias != "none":
        return f"bias={method.bias} trains its biases"
    if method.layer_replication:
        return "layer_replication makes layers of its own"
    return next((f"PEFT does not send rows through LoRA with {name}" for name in _variants(method)), "")


def _variants(lora: LoraConfig) -> list[str]:
    """The settings that give LoRA's layers another forward, as PEFT's config marks them."""
    starts = lora.__dataclass_fields__["init_lora_weights"].metadata["lora_variants"]
    found = [f.name for f in dataclasses.fields(lora) if f.metadata.get("is_lora_variant") and getattr(lora, f.name)]
    return found + [f"init_lora_weights={lora.init_lora_weights}"] * (lora.init_lora_weights in starts)


def alone(options: config.SFT, found: list[Member], key: str) -> str:
    """How the adapters are trained in runs of their own."""
    rates, paths = len(_listed(options.learning_rate)) > 1, len({id(one.data) for one in found}) > 1
    if rates and paths:
        return "one rate and one file a run"
    if rates:
        return f"align -m {key}.learning_rate={','.join(f'{one.options.learning_rate:g}' for one in found)}"
    if paths:
        return f"align -m {key}.data.path={','.join(str(one.data.path) for one in found)}"
    return f"align -m seed={','.join(str(one.seed) for one in found)}"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
