"""Choice of the engine that makes the rollouts: vLLM where it is installed and serves this actor, else transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from align.config import RolloutOptions
from align.errors import AlignError
from align.installed import installed, require
from align.peft.routes import ADAPTER, CONVERTED, EMBEDDINGS, check_servable
from align.types import RolloutEngine

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # vLLM 0.32, CPU attention
COST = "rollout.batch_size rows at a time; what they take is seconds/generate in metrics.jsonl"
HANDED = {ADAPTER: "the adapter is", CONVERTED: "the adapter is, as LoRA,", EMBEDDINGS: "the virtual tokens are"}


def unserved(model: dict[str, Any], on_cpu: bool) -> str:
    """Reason why vLLM cannot roll out this actor; '' where it can. `model` is the base's config.json."""
    if not installed("vllm"):
        return "vLLM is not installed"
    size = head_size(model)
    if on_cpu and size is not None and size not in CPU_HEAD_SIZES:
        return f"vLLM on CPU has no attention for a head size of {size} (it has {', '.join(map(str, CPU_HEAD_SIZES))})"
    return ""


def unserved_class(model: dict[str, Any]) -> str:
    """Reason why vLLM has no class for this model that can stand beside a trainer; '' where it has. Imports vLLM."""
    from align.rollout.vllm.engine import why_unserved

    name = (model.get("architectures") or [""])[0]
    return why_unserved(name) if name else ""


def head_size(model: dict[str, Any]) -> int | None:
    """Size of an attention head by config.json; None where it does not say."""
    hidden = model.get("hidden_size", model.get("n_embd"))
    heads = model.get("num_attention_heads", model.get("n_head"))
    if model.get("head_dim"):
        return model["head_dim"]
    return hidden // heads if hidden and heads else None


def check_rollout(engine: str, model: dict[str, Any], on_cpu: bool) -> None:
    """Refuses `rollout=vllm` for what vLLM cannot serve."""
    if engine not in ("auto", "vllm", "hf"):
        raise AlignError(f"rollout.engine={engine}: use rollout=auto, rollout=vllm or rollout=hf")
    if engine != "vllm":
        return
    require("vllm", "rollout=vllm", "rollout=hf")
    if reason := unserved(model, on_cpu) or unserved_class(model):
        raise AlignError(f"rollout=vllm: {reason}\n  use rollout=hf")


def choose(
    options: RolloutOptions,
    policy: Any,
    base: str,
    tokenizer: Any,
    longest: int,
    tell: Callable[[str], None],
) -> RolloutEngine:
    """The engine for `policy`, whose base model lies in folder `base`; says which and why.

    `longest` is the most tokens of a prompt and its response together.
    """
    on_cpu = policy.device.type == "cpu"
    model = policy.model.config.to_dict()
    check_rollout(options.engine, model, on_cpu)
    method = policy.model.peft_config["default"] if policy.has_adapter else None
    by_method = check_servable(method, options.engine, options.fallback)
    reason = "rollout=hf" if options.engine == "hf" else unserved(model, on_cpu) or by_method or unserved_class(model)
    engine = None
    if not reason:
        must = options.engine != "auto" or options.fallback == "error"
        try:
            engine = start_vllm(options, policy, base, longest)
        except AlignError as refusal:
            if must:
                raise
            why = getattr(refusal, "reason", "") or str(refusal).splitlines()[0].removeprefix("rollout=vllm: ")
            reason = f"vLLM does not serve this model: {why}"
    if engine:
        handed = f"{HANDED.get(engine.mode, 'all weights are')} handed over after each step"
        if engine.shared:
            sync = f"; {handed}" if engine.on_base else ", which no sync moves"
            tell(f"rollouts by vLLM in this process, on the trainer's own weights{sync}")
        else:
            tell(f"rollouts by vLLM in this process, on a copy of the weights ({engine.why_apart}); {handed}")
        return engine
    from align.rollout.hf import HFRollout

    cost = "" if options.engine == "hf" else f" ({COST})"
    tell(f"rollouts by transformers: {reason}{cost}")
    return HFRollout(tokenizer.pad_token_id, options.batch_size)


def start_vllm(options: RolloutOptions, policy: Any, base: str, longest: int) -> Any:
    """vLLM on `policy`, which it has served once, so that nothing refuses it later.

    Raises AlignError for what vLLM refuses or fails on, and leaves no engine then.
    """
    from align.rollout.vllm.rollout import VLLMRollout

    share = {"auto": None, "true": True, "false": False}[str(options.share_weights).lower()]
    engine = None
    try:
        engine = VLLMRollout(base, policy, longest, options.batch_size, options.kv_cache_mib, share)
        engine.attach(policy)
    except Exception as error:  # whatever vLLM's models and kernels raise
        if engine is not None:
            engine.close()
        if isinstance(error, AlignError):
            raise
        why = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise AlignError(f"rollout=vllm: vLLM fails on this model: {why}\n  use rollout=hf") from error
    return engine
