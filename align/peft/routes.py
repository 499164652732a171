"""Route of a PEFT method's policy to vLLM: one function, one table (PEFT 0.21, vLLM 0.32).

adapter     LoRA as vLLM knows it, handed over as it is
converted   an adapter that equals a LoRA to rounding (align.peft.merging), handed over as that LoRA
embeddings  virtual tokens, handed over as embeddings that stand before each prompt's
merged      the adapter's weights merged into the base's, layer by layer, and all of them copied
generate    not at all: transformers makes the rollouts
refused     no rollout of it is the policy's

MiSS of init_weights=bat is merged: its change of a weight depends on the weight, and has its whole rank. So is what
would need a larger rank than vLLM can be started with, such as LoHa of more than 22.
"""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig, PeftConfig

from align.errors import AlignError
from align.peft.merging import other_than_lora, rank_of
from align.peft.quantized import wanted

ADAPTER, CONVERTED, EMBEDDINGS = "adapter", "converted", "embeddings"
MERGED, GENERATE, REFUSED = "merged", "generate", "refused"
LARGEST_RANK = 512
"""That vLLM can be started with."""

INTO_WEIGHTS = {
    "ADALORA", "BOFT", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR",
    "LORA", "MISS", "OFT", "RANDLORA", "ROAD", "SHIRA", "TRAINABLE_TOKENS", "VBLORA", "VERA", "WAVEFT",
}  # fmt: skip
"""Methods that change weights and nothing else, so that a plain model can be what they are."""

VIRTUAL_TOKENS = {"P_TUNING", "PROMPT_TUNING"}
"""Methods whose every row begins with the same embeddings, and which are nothing else."""

TAKE_A_PART = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Starts of LoRA that take a part out of the base's weights."""


@dataclass(frozen=True)
class Route:
    mode: str
    why: str = ""
    """Reason why a shorter way does not serve."""


def route(method: PeftConfig) -> Route:
    """The shortest right way of an actor with this method to vLLM."""
    kind = method.peft_type.value
    if kind == "LILY":
        return Route(REFUSED, "LILY's output for one row depends on the other rows of a batch, and on tokens to come")
    if kind in VIRTUAL_TOKENS:
        return Route(EMBEDDINGS)
    if method.is_prompt_learning:
        return Route(GENERATE, f"vLLM is not handed what {kind} puts before a text")
    if more := why_unmergeable(method):
        return Route(GENERATE, more)
    why = why_not_lora(method)
    if why and wanted(method):
        return Route(GENERATE, f"{why}, and merged into quantised weights it would be rounded away")
    if why:
        return Route(MERGED, why)
    return Route(ADAPTER if type(method) is LoraConfig else CONVERTED)


def mergeable(method: PeftConfig) -> bool:
    """A plain model's weights can hold what the method computes."""
    return not why_unmergeable(method)


def why_unmergeable(method: PeftConfig) -> str:
    """Reason why no plain model's weights can hold what the method computes; '' where they can."""
    kind = method.peft_type.value
    if method.is_prompt_learning:
        return f"what {kind} puts before a text is no weight of a plain model"
    return "" if kind in INTO_WEIGHTS else f"{kind} computes more than a plain model's weights can hold"


def why_not_lora(method: PeftConfig) -> str:
    """Reason why vLLM does not serve this method as LoRA, by itself or converted; '' where it does."""
    if type(method) is not LoraConfig and (other := other_than_lora(method)):
        return f"vLLM serves LoRA, not {other}"
    has = vars(method).get
    unknown = {
        "use_dora": has("use_dora"),
        f"bias={has('bias')}": has("bias", "none") != "none",
        "lora_bias": has("lora_bias"),
        "modules_to_save": set(has("modules_to_save") or ()) - {"score", "classifier"},
        "trainable_token_indices": has("trainable_token_indices"),
        "target_parameters": has("target_parameters"),
        "layer_replication": has("layer_replication"),
        f"r={lora_rank(method)}": lora_rank(method) > LARGEST_RANK,
    }
    return next((f"vLLM serves no LoRA with {name}" for name, there in unknown.items() if there), "")


def lora_rank(method: PeftConfig) -> int:
    """The largest rank of what vLLM would serve: of a LoRA, or of the one that the method equals."""
    return max([method.r, *method.rank_pattern.values()]) if type(method) is LoraConfig else rank_of(method)


def changes_the_base(method: PeftConfig) -> bool:
    """A new adapter of this kind takes a part out of the base's weights: what is left is another base."""
    start = getattr(method, "init_lora_weights", True)
    return isinstance(start, str) and start.startswith(TAKE_A_PART)


def check_servable(method: PeftConfig | None, engine: str, fallback: str) -> str:
    """Reason why transformers makes the rollouts of an actor with this method though vLLM could run; '' if vLLM does.

    Raises AlignError where `engine` vllm may not fall back, and for what nothing serves.
    """
    if method is None:
        return ""
    way = route(method)
    if way.mode == REFUSED:
        raise AlignError(f"actor.peft: no rollout can be the policy's: {way.why}\n  use another peft@actor.peft")
    if fallback not in ("hf", "error"):
        raise AlignError(f"rollout.fallback={fallback}: use hf or error")
    if way.mode == GENERATE and engine != "hf" and fallback == "error":
        raise AlignError(f"rollout={engine}: {way.why}\n  use rollout=auto (transformers writes then), or rollout=hf")
    return way.why if way.mode == GENERATE else ""
