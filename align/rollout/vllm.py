"""Rollouts by vLLM in this process, which is handed the adapter after every update.

vLLM keys its weights by an adapter's id and its prefix cache by name and path, so every version gets an
id, a name and a folder of its own; anything less has been seen to serve the old policy without a word.
On the way in and out vLLM changes this process (thread function, random state, environment, process
group): all of it is put back. Seen on CPU; the GPU branch has not been run.

Shapes: B rows, T response.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor

from align import surroundings
from align.errors import AlignError
from align.rollout.hf import to_generation
from align.types import Generation, Policy, Sampling, SyncReceipt

ON_CPU = {"enforce_eager": True, "block_size": 32}  # CPU's block of 128 tokens would be wasted on a short row
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM 0.32 can be started with
MIB = 2**20
GREEDY_TEMPERATURE = "align_temperature"


class VLLMRollout:
    """vLLM's engine with one LoRA adapter: the policy."""

    name = "vllm"

    def __init__(self, base: str, policy: Any, longest: int, batch_size: int = 64, kv_cache_mib: int = 128) -> None:
        """Starts the engine on the plain model in folder `base`; `attach` brings it the policy's adapter.

        `longest` is the most tokens of a prompt and its response together, `batch_size` the most rows at a
        time, `kv_cache_mib` the size of the key-value cache. Raises AlignError for what vLLM refuses.
        """
        rank = _lora_rank(policy.model.peft_config["default"])
        on_cpu = policy.device.type == "cpu"
        self.devices = [] if on_cpu else [policy.device]
        self.pad_id = policy.model.config.pad_token_id or 0
        self.request: Any = None
        self.pushes = 0
        surroundings.prepare()
        with _undone(), _memory_unbound() if on_cpu else nullcontext():
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            import vllm

            self._vllm = vllm
            try:
                self.engine = vllm.LLM(
                    model=base,
                    dtype=str(_dtype(policy)).removeprefix("torch."),
                    max_model_len=longest,
                    max_num_seqs=batch_size,
                    kv_cache_memory_bytes=kv_cache_mib * MIB,
                    enable_lora=True,
                    max_lora_rank=rank,
                    max_loras=1,
                    max_cpu_loras=1,
                    generation_config="vllm",
                    logprobs_mode="processed_logprobs",
                    logits_processors=[_greedy_at_a_temperature()],
                    skip_tokenizer_init=True,
                    enable_prefix_caching=False,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    seed=0,
                    **(ON_CPU if on_cpu else _beside_a_trainer()),
                )
            except ValueError as error:
                raise AlignError(f"rollout=vllm: vLLM does not start on {base}: {error}\n  write rollout=hf") from error
        client = self.engine.llm_engine.engine_core
        client._finalizer.detach()  # it would destroy the process group whenever the engine is collected
        self.core = client.engine_core
        self._end = weakref.finalize(self, _shut_down, self.core)
        self.folder = tempfile.TemporaryDirectory(prefix="align-vllm-")

    def attach(self, policy: Policy) -> SyncReceipt:
        return self.sync(policy)

    def sync(self, policy: Policy) -> SyncReceipt:
        """Hands over the policy's adapter as a new one and drops the old; tells its size and hash."""
        begun = time.perf_counter()
        self.pushes += 1
        name = f"policy-{self.pushes}"
        folder = Path(self.folder.name) / name
        policy.save_adapter(folder)
        from vllm.lora.request import LoRARequest

        request = LoRARequest(name, self.pushes, str(folder))
        try:
            self.engine.llm_engine.add_lora(request)
        except ValueError as error:
            shutil.rmtree(folder)
            raise AlignError(f"rollout=vllm: vLLM refuses the actor's adapter: {error}\n  write rollout=hf") from error
        if self.request is not None:
            self.engine.llm_engine.remove_lora(self.request.lora_int_id)
            shutil.rmtree(self.request.lora_path)
        self.request, self.version = request, policy.version
        size = sum(file.stat().st_size for file in folder.glob("adapter_model*"))
        return SyncReceipt(policy.version, "adapter", size, time.perf_counter() - begun, policy.hash())

    def generate(self, prompts: list[list[int]], keys: list[int], sampling: Sampling) -> Generation:
        """One response a prompt, `keys[i]` being row i's seed; in the order given."""
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        parameters = [self._parameters(key, sampling) for key in keys]
        try:
            with torch.random.fork_rng(self.devices):  # vLLM draws from the state, seeds or not
                outputs = self.engine.generate(inputs, parameters, lora_request=self.request, use_tqdm=False)
        except BaseException:
            self._abort_leftovers()
            raise
        responses = [_response(output.outputs[0]) for output in outputs]
        return to_generation(responses, sampling, self.pad_id, self.version)

    def close(self) -> None:
        """Ends the engine and deletes its adapters; may be called twice. A dropped engine ends by itself."""
        self._end()
        self.engine = self.core = self.request = None
        self.folder.cleanup()

    def _parameters(self, key: int, sampling: Sampling) -> Any:
        """The untruncated distribution at a temperature, ended by the given ids alone."""
        return self._vllm.SamplingParams(
            temperature=0.0 if sampling.greedy else sampling.temperature,
            extra_args={GREEDY_TEMPERATURE: sampling.temperature} if sampling.greedy else None,
            seed=key,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=list(sampling.stop_ids),
            ignore_eos=True,  # the model's own EOS ends a row only if it is one of the stop ids
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            logprobs=0,
            detokenize=False,
        )

    def _abort_leftovers(self) -> None:
        """Clears the scheduler of what an exception left there: the next call would wait for it for ever."""
        leftovers = list(self.core.scheduler.requests)
        self.engine.llm_engine.abort_request(leftovers, internal=True)


def _shut_down(core: Any) -> None:
    with _undone():
        core.shutdown()


def _response(output: Any) -> tuple[Tensor, Tensor]:
    """ids_T and logp_T of one completion."""
    ids = list(output.token_ids)
    logp = [entry[token].logprob for entry, token in zip(output.logprobs, ids, strict=True)]
    return torch.tensor(ids, dtype=torch.long), torch.tensor(logp, dtype=torch.float32)


def _dtype(policy: Any) -> torch.dtype:
    """The dtype that the policy computes in: that of its frozen base."""
    frozen = [p.dtype for p in policy.model.parameters() if not p.requires_grad]
    return frozen[0] if frozen else torch.float32


def _lora_rank(adapter: PeftConfig) -> int:
    """The smallest rank of `RANKS` that holds the adapter's."""
    if not isinstance(adapter, LoraConfig):
        raise AlignError(f"rollout=vllm: vLLM serves LoRA, not {adapter.peft_type.value}\n  write rollout=hf")
    rank = max([adapter.r, *adapter.rank_pattern.values()])
    if rank > RANKS[-1]:
        raise AlignError(f"rollout=vllm: vLLM serves ranks up to {RANKS[-1]}, not {rank}\n  write rollout=hf")
    return next(size for size in RANKS if size >= rank)


def _beside_a_trainer() -> dict[str, float]:
    """On a GPU, of the memory the roles left free: vLLM checks for it, but takes weights and cache only."""
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": 0.9 * free / total}


def _greedy_at_a_temperature() -> type:
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


@contextmanager
def _undone() -> Iterator[None]:
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
def _memory_unbound() -> Iterator[None]:
    """Keeps vLLM 0.32 on CPU from binding all memory of this process to one NUMA node, for good."""
    operators = torch.ops._C
    operators.init_cpu_memory_env = lambda nodes: None
    try:
        yield
    finally:
        del operators.init_cpu_memory_env
