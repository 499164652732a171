"""Rollouts by vLLM in this process, which is handed after every update what it does not share with the trainer.

Shapes: B rows, T response.
"""

from __future__ import annotations

import gc
import tempfile
import time
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from align.errors import AlignError, StaleRolloutError
from align.peft.quantized import is_quantized, plain_config
from align.peft.routes import ADAPTER, CONVERTED, EMBEDDINGS, LARGEST_RANK, MERGED, Route, lora_rank, route
from align.roles.modules import plain
from align.rollout.canary import Canary
from align.rollout.hf import to_generation
from align.rollout.vllm.engine import GREEDY_TEMPERATURE, Settings, serves_lora, shut_down, start_engine
from align.rollout.vllm.shared import SharedWeights, Unshareable, why_own_copies
from align.rollout.vllm.weights import Adapters, Prompts, copy_base, copy_weights
from align.types import Generation, Policy, Sampling, SyncReceipt

RANKS = (8, 16, 32, 64, 128, 256, 320, LARGEST_RANK)  # that vLLM 0.32 can be started with
FULL = "full"
"""The mode of a policy without an adapter."""


class VLLMRollout:
    """vLLM's engine serving the policy: its adapter on the base (align.peft.routes), or all its weights.

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
            plain_config(policy.model.config).save_pretrained(base)
        way = route(policy.model.peft_config["default"]) if policy.has_adapter else Route(FULL)
        if way.mode in (ADAPTER, CONVERTED) and not self.quantized and not serves_lora(policy.model):
            way = Route(MERGED, f"vLLM has no LoRA for these layers of {type(plain(policy.model)).__name__}")
        self.mode, self.why_merged = way.mode, way.why
        """Route of the policy to the engine, by align.peft.routes, or "full"; the reason where it is merged."""
        virtual = policy.model.peft_config["default"].num_virtual_tokens if self.mode == EMBEDDINGS else 0
        self.settings = Settings(base, longest + virtual, batch_size, kv_cache_mib, embeddings=bool(virtual))
        self.on_cpu = policy.device.type == "cpu"
        self.devices = [] if self.on_cpu else [policy.device]
        self.pad_id = policy.model.config.pad_token_id or 0
        self.weights: SharedWeights | None = None
        self.version = policy.version
        self.share_weights = share_weights
        self.why_apart = "share_weights=false" if share_weights is False else self._why_own_copies(policy)
        self.canary = Canary(self, longest)
        self._begin()
        if self.on_base:
            self._learn_base()
        self._check_share()

    @property
    def shared(self) -> bool:
        return self.weights is not None

    @property
    def on_base(self) -> bool:
        """The engine's weights are the base's and stay so: what trains is handed over apart from them."""
        return self.mode in (ADAPTER, CONVERTED, EMBEDDINGS)

    def _why_own_copies(self, policy: Any) -> str:
        """Reason why the engine cannot share the trainer's weights, as far as it is known before the engine starts."""
        if self.mode == MERGED:
            return f"the adapter is merged for it: {self.why_merged}"
        return why_own_copies(plain(policy.model), self.on_cpu)

    def _begin(self) -> None:
        """A new engine, on the trainer's weights where it can be."""
        self._start()
        if self.quantized:
            copy_base(plain(self.policy.model), self.engine, _dtype(self.policy))
        if not self.why_apart:
            try:
                self.weights = SharedWeights(plain(self.policy.model), self.model)
            except Unshareable as error:
                self.why_apart = str(error)
                if self.on_base:  # the engine has no weights yet
                    self.close()
                    self._start()
        gc.collect()  # what vLLM had allocated for weights

    def _start(self) -> None:
        """An engine with its own weights only if they are read from disk, as a base that stays."""
        rank = lora_rank(self.policy.model.peft_config["default"]) if self.mode in (ADAPTER, CONVERTED) else 0
        rank = next(size for size in (0, *RANKS) if size >= rank)
        own = bool(self.why_apart) and self.on_base and not self.quantized
        engine = start_engine(self.settings, _dtype(self.policy), rank, own, self.on_cpu)
        self.engine, self.core, self.model = engine.llm, engine.core, engine.model
        self._sampling_params = engine.parameters
        self._end = weakref.finalize(self, shut_down, self.core)
        self.adapters, self.prompts = Adapters(self.engine), Prompts()

    def _learn_base(self) -> None:
        """Proves the base, which is served already; where its tensors fit vLLM's but mean something else there, such
        as BLOOM's queries, keys and values (vLLM 0.32), a new engine reads it from disk."""
        if self.canary.learn(self.policy):
            return
        if self.shared:
            self.why_apart = self._other_order()
            self.close()
            self._begin()
            if self.canary.learn(self.policy):
                return
        self.close()
        raise StaleRolloutError(
            f"vLLM does not serve the base that is trained on: its log-probabilities are {self.canary.noise:.3g} nats "
            "off\n  use rollout=hf"
        )

    def _other_order(self) -> str:
        return f"vLLM has the weights of a {self.policy.model.config.model_type} model in another order"

    def attach(self, policy: Policy) -> SyncReceipt:
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
            "and with a new engine\n  use rollout=hf"
        )

    def _check_share(self) -> None:
        if self.share_weights and self.why_apart:
            self.close()
            raise AlignError(
                f"rollout.share_weights=true: vLLM cannot stand on the trainer's weights: {self.why_apart}\n"
                "  use rollout.share_weights=auto"
            )

    def _rebuild(self, policy: Policy) -> SyncReceipt:
        """A new engine; where the old one stood on the trainer's weights, with a copy, in vLLM's own order."""
        if self.shared and not self.on_base:
            self.why_apart = self._other_order()
            self._check_share()
        self.close()
        self._begin()
        return self._hand_over(policy)

    def _hand_over(self, policy: Policy) -> SyncReceipt:
        """Shared weights are there already, and are checked to be; a copy of all weights is made anew."""
        begun = time.perf_counter()
        self._check_shared()
        mode = "shared" if self.shared and not self.on_base else self.mode
        if self.mode in (ADAPTER, CONVERTED):
            size = self._push_adapter(policy)  # under a new name, by which the prefix cache knows it
        else:
            size = self._take_whole(policy)
            self.engine.reset_prefix_cache()
        self.version = policy.version
        return SyncReceipt(policy.version, mode, size, time.perf_counter() - begun, policy.hash())

    def _push_adapter(self, policy: Policy) -> int:
        return self.adapters.push(policy.save_adapter if self.mode == ADAPTER else policy.save_as_lora)

    def _take_whole(self, policy: Policy) -> int:
        """Virtual tokens, or all weights that are not the trainer's own; their size in bytes."""
        if self.mode == EMBEDDINGS:
            return self.prompts.take(policy)
        if self.shared:
            return 0
        return copy_weights(policy, self.engine)

    def _check_shared(self) -> None:
        """Lays the weights together again if something on the trainer's side has parted them, or raises."""
        if self.weights is None or self.weights.holds():
            return
        try:
            self.weights.join(plain(self.policy.model), self.model)
        except Unshareable as error:
            raise AlignError(
                f"vLLM no longer stands on the trainer's weights: {error}\n  use rollout.share_weights=false"
            ) from error

    def generate(self, prompts: list[list[int]], keys: list[int], sampling: Sampling) -> Generation:
        """One response a prompt, `keys[i]` being row i's seed; in the order given."""
        self._check_shared()
        inputs = self.prompts.inputs(self.policy, prompts)
        parameters = [self._parameters(key, sampling) for key in keys]
        try:
            with torch.random.fork_rng(self.devices):  # vLLM draws from the state, seeds or not
                outputs = self.engine.generate(inputs, parameters, lora_request=self.adapters.request, use_tqdm=False)
        except BaseException:
            self._abort_leftovers()
            raise
        responses = [_response(output.outputs[0]) for output in outputs]
        return to_generation(responses, sampling, self.pad_id, self.version)

    def close(self) -> None:
        """Ends the engine and deletes its adapters; may be called twice. A dropped engine ends by itself."""
        self._end()
        self.adapters.close()
        self.engine = self.core = self.model = self.weights = None

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
