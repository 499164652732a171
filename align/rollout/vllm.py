"""Rollouts by vLLM in this process, which is handed the adapter after every update.

vLLM keys its weights by an adapter's id and its prefix cache by name and path, so every version gets an
id, a name and a folder of its own; anything less has been seen to serve the old policy without a word.
On the way in and out vLLM changes this process (thread function, random state, environment, process
group): all of it is put back. Seen on CPU; the GPU branch has not been run.

Shapes: B rows, T response.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor

from align import surroundings
from align.errors import AlignError
from align.roles.modules import plain
from align.rollout.hf import to_generation
from align.rollout.shared import SharedWeights, Unshareable, pairs_of, plain_weights, unwritten, why_own_copies
from align.rollout.vllm_greedy import GREEDY_TEMPERATURE, greedy_at_a_temperature
from align.rollout.vllm_process import memory_unbound, undone
from align.types import Generation, Policy, Sampling, SyncReceipt

PREFILL = 256  # tokens at a time on CPU, where vLLM's LoRA gathers an adapter's matrices for every token
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM 0.32 can be started with
MIB = 2**20


class VLLMRollout:
    """vLLM's engine serving the policy: its LoRA adapter on the base, or all its weights.

    With the trainer's own tensors where it can stand on them, else with a copy of the weights; `shared` says
    which, `why_apart` why.
    """

    name = "vllm"
    exact = False  # its kernels are other ones

    def __init__(
        self,
        base: str,
        policy: Any,
        longest: int,
        batch_size: int = 64,
        kv_cache_mib: int = 128,
        share_weights: bool | None = None,
    ) -> None:
        """Starts the engine on the plain model whose config lies in folder `base`; `attach` brings it the policy.

        `longest` is the most tokens of a prompt and its response together, `batch_size` the most rows at a
        time, `kv_cache_mib` the size of the key-value cache. `share_weights`: None where it can be. Raises
        AlignError for what vLLM refuses, and where True cannot hold.
        """
        self.policy = policy
        self.on_cpu = policy.device.type == "cpu"
        self.devices = [] if self.on_cpu else [policy.device]
        self.pad_id = policy.model.config.pad_token_id or 0
        self.request: Any = None
        self.weights: SharedWeights | None = None
        self.pushes = 0
        self.why_apart = "asked for" if share_weights is False else why_own_copies(plain(policy.model), self.on_cpu)
        self._start(base, policy, longest, batch_size, kv_cache_mib)
        if not self.why_apart:
            try:
                self.weights = SharedWeights(plain(policy.model), self.model)
            except Unshareable as error:
                self.why_apart = str(error)
                if policy.has_adapter:  # the engine has no weights yet
                    self.close()
                    self._start(base, policy, longest, batch_size, kv_cache_mib)
        if share_weights and self.why_apart:
            self.close()
            raise AlignError(
                f"rollout.share_weights=true: vLLM cannot stand on the trainer's weights: {self.why_apart}\n"
                "  write rollout.share_weights=auto"
            )
        gc.collect()  # what vLLM had allocated for weights

    @property
    def shared(self) -> bool:
        return self.weights is not None

    def _start(self, base: str, policy: Any, longest: int, batch_size: int, kv_cache_mib: int) -> None:
        """vLLM's engine: with weights of its own only if they are read from disk, for an adapter on top."""
        rank = _lora_rank(policy.model.peft_config["default"]) if policy.has_adapter else 0
        own = bool(self.why_apart) and policy.has_adapter
        surroundings.prepare()
        with (
            undone(),
            memory_unbound() if self.on_cpu else nullcontext(),
            nullcontext() if own or not self.on_cpu else plain_weights(),
        ):
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            import vllm

            self._vllm = vllm
            try:
                self.engine = vllm.LLM(
                    model=base,
                    dtype=str(_dtype(policy)).removeprefix("torch."),
                    load_format="auto" if own else unwritten(),
                    max_model_len=longest,
                    max_num_seqs=batch_size,
                    kv_cache_memory_bytes=kv_cache_mib * MIB,
                    **(
                        {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 1}
                        if policy.has_adapter
                        else {}
                    ),
                    generation_config="vllm",
                    logprobs_mode="processed_logprobs",
                    logits_processors=[greedy_at_a_temperature()],
                    skip_tokenizer_init=True,
                    enable_prefix_caching=False,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    seed=0,
                    **(_on_cpu(max(longest, batch_size)) if self.on_cpu else _beside_a_trainer()),
                )
            except ValueError as error:
                raise AlignError(f"rollout=vllm: vLLM does not start on {base}: {error}\n  write rollout=hf") from error
        client = self.engine.llm_engine.engine_core
        client._finalizer.detach()  # it would destroy the process group whenever the engine is collected
        self.core = client.engine_core
        self.model = self.core.model_executor.driver_worker.worker.model_runner.model
        self._end = weakref.finalize(self, _shut_down, self.core)
        self.folder = tempfile.TemporaryDirectory(prefix="align-vllm-")

    def attach(self, policy: Policy) -> SyncReceipt:
        return self.sync(policy)

    def sync(self, policy: Policy) -> SyncReceipt:
        """Brings the engine to the policy's present weights; tells what moved and its hash.

        Shared weights are there already, and are checked to be; a copy of all weights is made anew.
        """
        begun = time.perf_counter()
        size = 0
        self._check_shared()
        if policy.has_adapter:
            mode, size = "adapter", self._push_adapter(policy)
        elif self.shared:
            mode = "shared"
        else:
            try:
                mode, size = "full", self._copy_weights(policy)
            except Unshareable as error:
                raise AlignError(
                    f"rollout=vllm: the policy's weights do not fit vLLM's: {error}\n  write rollout=hf"
                ) from error
        self.version = policy.version
        return SyncReceipt(policy.version, mode, size, time.perf_counter() - begun, policy.hash())

    def _push_adapter(self, policy: Policy) -> int:
        """Hands over the adapter as a new one and drops the old; its size in bytes."""
        from vllm.lora.request import LoRARequest

        self.pushes += 1
        name = f"policy-{self.pushes}"
        folder = Path(self.folder.name) / name
        policy.save_adapter(folder)
        request = LoRARequest(name, self.pushes, str(folder))
        try:
            self.engine.llm_engine.add_lora(request)
        except ValueError as error:
            shutil.rmtree(folder)
            raise AlignError(f"rollout=vllm: vLLM refuses the actor's adapter: {error}\n  write rollout=hf") from error
        if self.request is not None:
            self.engine.llm_engine.remove_lora(self.request.lora_int_id)
            shutil.rmtree(self.request.lora_path)
        self.request = request
        return sum(file.stat().st_size for file in folder.glob("adapter_model*"))

    def _copy_weights(self, policy: Policy) -> int:
        """Copies all weights into the engine's own; their size in bytes."""
        size = 0
        with torch.no_grad(), policy.generating() as model:
            for pair in pairs_of(model, self.model):
                whole = torch.cat([part.data for part in pair.parts])
                pair.theirs.data[: len(whole)].copy_(whole)
                size += whole.nbytes
        return size

    def _check_shared(self) -> None:
        """Lays the weights together again if something on the trainer's side has parted them, or raises."""
        if self.weights is None or self.weights.holds():
            return
        try:
            self.weights.join(plain(self.policy.model), self.model)
        except Unshareable as error:
            raise AlignError(
                f"vLLM no longer stands on the trainer's weights: {error}\n  write rollout.share_weights=false"
            ) from error

    def generate(self, prompts: list[list[int]], keys: list[int], sampling: Sampling) -> Generation:
        """One response a prompt, `keys[i]` being row i's seed; in the order given."""
        self._check_shared()
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
        self.engine = self.core = self.model = self.weights = self.request = None
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
    with undone():
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
