"""vLLM's engine in this process, beside the trainer: how it is started and ended.

On the way in and out vLLM changes this process (thread function, random state, environment, process group): all of
it is put back. Seen on CPU; the GPU branch has not been run.
"""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from align import library_variables as surroundings
from align.errors import AlignError
from align.rollout.vllm.shared import plain_weights, unwritten

PREFILL = 256  # tokens at a time on CPU, where vLLM's LoRA gathers an adapter's matrices for every token
MIB = 2**20


@dataclass
class Settings:
    """Of an engine for one policy."""

    base: str
    """The folder of the plain model's config.json, and of its weights where they are read."""
    longest: int
    """Tokens of a prompt and its response together."""
    batch_size: int = 64
    """Rows at a time."""
    kv_cache_mib: int = 128
    prefix_caching: bool = False
    embeddings: bool = False
    """Prompts may be embeddings."""


@dataclass
class Engine:
    llm: Any
    core: Any
    model: Any
    """vLLM's own model, in this process."""
    parameters: Any
    """vLLM's SamplingParams."""


class DoesNotStart(AlignError):
    """vLLM refuses the model, or the adapter's kind on it, such as a LoRA on BLOOM (vLLM 0.32)."""

    @property
    def reason(self) -> str:
        return (str(self.__cause__).splitlines() or [type(self.__cause__).__name__])[0]


def start_engine(settings: Settings, dtype: torch.dtype, rank: int, own_weights: bool, on_cpu: bool) -> Engine:
    """An engine with room for a LoRA of `rank` (0: for none); without `own_weights` nothing is written to its weights.

    Raises DoesNotStart for what vLLM refuses.
    """
    surroundings.prepare()
    with (
        undone(),
        memory_unbound() if on_cpu else nullcontext(),
        nullcontext() if own_weights or not on_cpu else plain_weights(),
    ):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        import vllm

        lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 1} if rank else {}
        place = _on_cpu(max(settings.longest, settings.batch_size)) if on_cpu else _beside_a_trainer()
        try:
            llm = vllm.LLM(
                model=settings.base,
                dtype=str(dtype).removeprefix("torch."),
                load_format="auto" if own_weights else unwritten(),
                max_model_len=settings.longest,
                max_num_seqs=settings.batch_size,
                kv_cache_memory_bytes=settings.kv_cache_mib * MIB,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",
                logits_processors=[greedy_at_a_temperature()],
                skip_tokenizer_init=True,
                enable_prefix_caching=settings.prefix_caching,
                enable_prompt_embeds=settings.embeddings,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                seed=0,
                **lora,
                **place,
            )
        except Exception as error:  # whatever vLLM's model, kernels or network raise
            raise DoesNotStart(
                f"rollout=vllm: vLLM does not start on {settings.base}: {error}\n  use rollout=hf"
            ) from error
    client = llm.llm_engine.engine_core
    client._finalizer.detach()  # it would destroy the process group whenever the engine is collected
    core = client.engine_core
    return Engine(llm, core, core.model_executor.driver_worker.worker.model_runner.model, vllm.SamplingParams)


def why_unserved(architecture: str) -> str:
    """Reason why vLLM itself has no class for an architecture; '' where it has one."""
    from vllm.model_executor.models.registry import ModelRegistry

    known = ModelRegistry.models.get(architecture)
    if known is None:
        return f"vLLM (0.32) has no class for {architecture}"
    if getattr(known, "module_name", "").endswith(".transformers"):  # it decorates the class in this process
        return f"vLLM (0.32) serves {architecture} by the trainer's own class, which it changes"
    return ""


def serves_lora(model: PeftModel) -> bool:
    """Return True where vLLM's class for this model takes LoRA on the layers that have it here.

    It knows those of a layer that it packs by the names of the parts, such as gate_proj; GLM 4 has the whole.
    """
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.model_executor.models.registry import ModelRegistry

    base = model.get_base_model()
    known = ModelRegistry.models.get(type(base).__name__)
    if known is None:
        return True  # vLLM says so itself
    theirs = known.load_model_cls()
    packed: dict[str, list[str]] = getattr(theirs, "packed_modules_mapping", None) or {}
    layers = {name.rpartition(".")[2] for name, one in base.named_modules() if isinstance(one, BaseTunerLayer)}
    return supports_lora(theirs) and all(packed.get(name, [name]) == [name] for name in layers)


def shut_down(core: Any) -> None:
    with undone():
        core.shutdown()


def _on_cpu(least: int) -> dict[str, Any]:
    """Prompts are read whole, and no more than `PREFILL` or `least` tokens of them at a time.

    vLLM 0.32 fails on CPU where a row with a seed is read in two parts. Its block of 128 tokens would be wasted
    on a short row.
    """
    tokens = {"max_num_batched_tokens": max(PREFILL, least), "enable_chunked_prefill": False}
    return {"enforce_eager": True, "block_size": 32, **tokens}


def _beside_a_trainer() -> dict[str, float]:
    """On a GPU, of the memory the roles left free: vLLM checks for it, but takes weights and cache only."""
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": 0.9 * free / total}


@contextmanager
def undone() -> Iterator[None]:
    """Undoes what vLLM does to its process beside its work, and keeps it from talking.

    The thread function and its value, random states and environment are as before; the default process
    group is not destroyed: engines of DeepSpeed may stand on it, and no new one would revive them.
    """
    environment, states = dict(os.environ), (random.getstate(), np.random.get_state())
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda group=None: destroy(group) if group is not None else None
    logging.getLogger("vllm").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.random.fork_rng():
                yield
    finally:
        torch.distributed.destroy_process_group = destroy
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def memory_unbound() -> Iterator[None]:
    """Keeps vLLM 0.32 on CPU from binding all memory of this process to one NUMA node, for good."""
    operators = torch.ops._C
    operators.init_cpu_memory_env = lambda nodes: None
    try:
        yield
    finally:
        del operators.init_cpu_memory_env


GREEDY_TEMPERATURE = "align_temperature"


def greedy_at_a_temperature() -> type:
    """A logits processor that divides a greedy row's logits by the temperature of its log-probabilities.

    vLLM takes greedy for temperature 0 and reports log-probabilities at 1; the highest logit stays so.
    """
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

    class GreedyAtATemperature(AdapterLogitsProcessor):
        @classmethod
        def validate_params(cls, params: Any) -> None:
            return None

        def is_argmax_invariant(self) -> bool:
            return False  # vLLM leaves those that are out of greedy decoding

        def new_req_logits_processor(self, params: Any) -> Any:
            temperature = (params.extra_args or {}).get(GREEDY_TEMPERATURE, 1.0)
            return None if temperature == 1.0 else lambda output_ids, logits_V: logits_V / temperature

    return GreedyAtATemperature
