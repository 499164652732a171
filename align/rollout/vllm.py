"""Rollouts by vLLM in this process, which is handed the adapter after every update.

vLLM keys its weights by an adapter's id and its prefix cache by name and path, so every version gets an
id, a name and a folder of its own; anything less has been seen to serve the old policy without a word.

Shapes: B rows, T response.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from align.errors import AlignError, StaleRolloutError
from align.peft.quantized import is_quantized, plain_config, plain_tensors
from align.peft.routes import ADAPTER, LARGEST_RANK, MERGED, largest_rank, route
from align.roles.modules import plain
from align.rollout.canary import Canary
from align.rollout.hf import to_generation
from align.rollout.shared import SharedWeights, Unshareable, places_of, why_own_copies
from align.rollout.vllm_engine import Settings, shut_down, start_engine
from align.rollout.vllm_greedy import GREEDY_TEMPERATURE
from align.types import Generation, Policy, Sampling, SyncReceipt

RANKS = (8, 16, 32, 64, 128, 256, 320, LARGEST_RANK)  # that vLLM 0.32 can be started with


class VLLMRollout:
    """vLLM's engine serving the policy: its LoRA adapter on the base, or all its weights with another adapter merged.

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
        self.quantized = is_quantized(policy.model)
        self.home = tempfile.TemporaryDirectory(prefix="align-vllm-")
        if self.quantized:
            base = self.home.name
            plain_config(plain(policy.model)).save_pretrained(base)
        self.settings = Settings(base, longest, batch_size, kv_cache_mib)
        self.on_cpu = policy.device.type == "cpu"
        self.devices = [] if self.on_cpu else [policy.device]
        self.pad_id = policy.model.config.pad_token_id or 0
        self.request: Any = None
        self.weights: SharedWeights | None = None
        self.pushes, self.version = 0, policy.version
        self.adapter = policy.has_adapter and route(policy.model.peft_config["default"]).mode == ADAPTER
        """The adapter is handed over as it is; any other is merged."""
        self.why_apart = "asked for" if share_weights is False else self._why_own_copies(policy)
        self.canary = Canary(self, longest)
        self._begin()
        if share_weights and self.why_apart:
            self.close()
            raise AlignError(
                f"rollout.share_weights=true: vLLM cannot stand on the trainer's weights: {self.why_apart}\n"
                "  write rollout.share_weights=auto"
            )

    @property
    def shared(self) -> bool:
        return self.weights is not None

    def _why_own_copies(self, policy: Any) -> str:
        """Why the trainer's weights cannot be the engine's, as far as it is known before it starts."""
        if policy.has_adapter and not self.adapter:
            return f"the adapter is merged for it: {route(policy.model.peft_config['default']).why}"
        return why_own_copies(plain(policy.model), self.on_cpu)

    def _begin(self) -> None:
        """A new engine, on the trainer's weights where it can be."""
        self._start()
        if self.quantized:
            self._copy_base()
        if not self.why_apart:
            try:
                self.weights = SharedWeights(plain(self.policy.model), self.model)
            except Unshareable as error:
                self.why_apart = str(error)
                if self.adapter:  # the engine has no weights yet
                    self.close()
                    self._start()
        gc.collect()  # what vLLM had allocated for weights

    def _start(self) -> None:
        """An engine with weights of its own only if they are read from disk, for an adapter on top."""
        rank = _lora_rank(self.policy.model.peft_config["default"]) if self.adapter else 0
        own = bool(self.why_apart) and self.adapter and not self.quantized
        engine = start_engine(self.settings, _dtype(self.policy), rank, own, self.on_cpu)
        self.engine, self.core, self.model = engine.llm, engine.core, engine.model
        self._sampling_params = engine.parameters
        self._end = weakref.finalize(self, shut_down, self.core)
        self.folder = tempfile.TemporaryDirectory(prefix="align-vllm-")  # of its adapters

    def attach(self, policy: Policy) -> SyncReceipt:
        if self.adapter:  # the base is served already
            self.canary.learn(policy)
        return self.sync(policy)

    def sync(self, policy: Policy) -> SyncReceipt:
        """Brings the engine to the policy's present weights, and proves it; tells what moved and its hash.

        What fails the proof is handed over once more, then to a new engine; then StaleRolloutError says what is
        likely wrong.
        """
        receipt = self._hand_over(policy)
        for again in (self._hand_over, self._rebuild, None):
            if self.canary.right(policy):
                return replace(receipt, gap=self.canary.gap)
            if again:
                receipt = again(policy)
        raise StaleRolloutError(
            f"vLLM does not serve the policy that is trained (version {policy.version}): {self.canary.cause}\n"
            f"  its log-probabilities are up to {self.canary.gap:.3g} nats off, after a second push "
            "and with a new engine\n  write rollout=hf"
        )

    def _rebuild(self, policy: Policy) -> SyncReceipt:
        self.close()
        self._begin()
        return self._hand_over(policy)

    def _hand_over(self, policy: Policy) -> SyncReceipt:
        """Shared weights are there already, and are checked to be; a copy of all weights is made anew."""
        begun = time.perf_counter()
        size = 0
        self._check_shared()
        if self.adapter:
            mode, size = ADAPTER, self._push_adapter(policy)
        elif self.shared:
            mode = "shared"
            self.engine.reset_prefix_cache()
        else:
            try:
                mode, size = MERGED if policy.has_adapter else "full", self._copy_weights(policy)
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
        """Copies all weights, an adapter merged in, into the engine's own; their size in bytes."""
        size = 0
        with torch.no_grad(), policy.generating() as model:
            places = places_of(model, self.model)
            for name, tensor in policy.tensors(merged=True):
                for place in places.get(name, ()):
                    place.copy_(tensor)
                    size += tensor.nbytes
        self.engine.reset_prefix_cache()
        return size

    def _copy_base(self) -> None:
        """Copies into the engine what the trainer's quantised weights stand for, once: they never move."""
        ours, dtype = plain(self.policy.model), _dtype(self.policy)
        with torch.device("meta"):
            places = places_of(type(ours)._from_config(plain_config(ours), dtype=dtype), self.model)
        for name, tensor in plain_tensors(ours, dtype):
            for place in places.get(name, ()):
                place.copy_(tensor)

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
        return self._sampling_params(
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


def _response(output: Any) -> tuple[Tensor, Tensor]:
    """ids_T and logp_T of one completion."""
    ids = list(output.token_ids)
    logp = [entry[token].logprob for entry, token in zip(output.logprobs, ids, strict=True)]
    return torch.tensor(ids, dtype=torch.long), torch.tensor(logp, dtype=torch.float32)


def _dtype(policy: Any) -> torch.dtype:
    """The dtype that the policy computes in: that of its frozen base."""
    frozen = [p.dtype for p in policy.model.parameters() if not p.requires_grad and p.is_floating_point()]
    return frozen[0] if frozen else torch.float32


def _lora_rank(adapter: LoraConfig) -> int:
    """The smallest rank of `RANKS` that holds the adapter's."""
    return next(size for size in RANKS if size >= largest_rank(adapter))
