"""One model trained or computed under DeepSpeed ZeRO; the only module that imports deepspeed.

What differs from DeepSpeed's own manner: the caller says which backward pass is the last before a step,
so micro-batches may be any number; clipping is always written down (left out, DeepSpeed 0.19 clips at 1);
optimizer state that is offloaded is still stepped by torch's AdamW, so that nothing is compiled.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from align.config import Zero
from align.engine.plain import ALL, NotFinite, Stepped, adamw, by_role, rates_of, set_rate
from align.errors import AlignError

NEVER = 10**9


class DeepSpeedEngine:
    """`backward` any number of times, then `step`; a frozen model (no learning rate) only computes."""

    sharded = True

    def __init__(
        self, module: nn.Module, learning_rate: float | Mapping[str, float] | None, max_grad_norm: float, zero: Zero
    ) -> None:
        """Shards `module` in place at stage 1, 2 or 3; a frozen one at stage 3 alone.

        `learning_rate` is one rate, or one for each role of `module`; their gradients are clipped together.

        At stage 3 all weights of a trained model become float32: on a bfloat16 base DeepSpeed 0.19 trained
        a float32 adapter with an error of twice the learning rate in four steps.
        """
        rates = by_role(learning_rate)
        check(zero, trained=bool(rates))
        self.module = module
        self.zero = zero
        self.trained = bool(rates)
        self._whole = False
        if rates and zero.stage == 3:
            module.float()
        kinds = {p.dtype for p in module.parameters()}
        config = settings(zero, max_grad_norm, trained=bool(rates), bf16=kinds == {torch.bfloat16})
        optimizer = adamw(module, rates) if rates else None
        with _local_rank():
            deepspeed = _connected()
            self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._whole:
            return self.module(*args, **kwargs)
        with _local_rank():
            return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        with _local_rank():
            self.engine.backward(loss)
            if not last:
                self.engine.step()  # counts the micro-batch; no parameter moves before the last one

    def step(self) -> dict[str, float]:
        """Clips, steps, clears the gradients; returns their joint norm before clipping, under the first role.

        Raises NotFinite, when the weights have moved already.
        """
        role = next(iter(self.rates()))
        stepped = isinstance(self.module, Stepped)
        gradients = self._whole_gradients() if stepped and self.module.reads_gradients() else {}
        with _local_rank():
            self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise NotFinite(role, norm)
        if stepped:
            self._call_hook(gradients, norm)
        return {role: norm}

    def _whole_gradients(self) -> dict[nn.Parameter, Tensor]:
        from deepspeed.utils import safe_get_full_grad

        trained = [p for p in self.module.parameters() if p.requires_grad]
        return {p: safe_get_full_grad(p).to(p.dtype) for p in trained}

    def _call_hook(self, gradients: dict[nn.Parameter, Tensor], norm: float) -> None:
        """Call the module's hook with the gradients of the step, clipped; the optimizer's own weights follow it.

        At stage 3 there are none, and weights are shards: no hook that reads them is allowed there.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

        bound = self.engine.gradient_clipping() or math.inf
        before = {p: p.detach().clone() for p in gradients}
        for p, gradient in gradients.items():
            p.grad = gradient * min(bound / (norm + 1e-6), 1.0)  # as torch clips
        self.module.on_step([role for role in self.rates() if role != ALL])
        for p, old in before.items():
            p.grad = None
            if not torch.equal(p, old):
                master = safe_get_full_fp32_param(p)
                safe_set_full_fp32_param(p, torch.where(p != old, p.detach().to(master.dtype), master))

    def check(self) -> dict[str, Tensor]:
        """Nothing is known of the gradients before the step."""
        return {}

    def clear(self) -> None:
        """Drops the gradients that wait for a step, also where DeepSpeed 0.19 keeps them between micro-batches."""
        optimizer = self.engine.optimizer
        optimizer.zero_grad()
        if self.zero.stage < 3:
            optimizer.micro_step_id = -1  # the next micro-batch is the first
            for kept in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
                kept.update(dict.fromkeys(kept))

    def rates(self) -> dict[str, float]:
        """The learning rate of each role."""
        return rates_of(self._groups())

    def set_rate(self, role: str, rate: float) -> None:
        set_rate(self._groups(), role, rate)

    def _groups(self) -> list[dict[str, Any]]:
        return self.engine.optimizer.param_groups if self.trained else []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every parameter is whole and the module computes without DeepSpeed's hooks.

        Every rank must enter. What is changed inside is lost at stage 3. May be nested.
        """
        if self._whole or self.zero.stage < 3:
            yield
            return
        import deepspeed

        self._whole = True
        try:
            with deepspeed.zero.GatheredParameters(list(self.module.parameters())), self._without_hooks():
                yield
        finally:
            self._whole = False

    @contextmanager
    def _without_hooks(self) -> Iterator[None]:
        """Takes off ZeRO-3's hooks, which gather and release each layer at each token, and puts them back."""
        optimizer = self.engine.optimizer
        # a frozen model's optimizer is the sharding itself
        sharding = getattr(optimizer, "parameter_offload", optimizer)
        handles = [sharding.fwd_pre_hook, *sharding.forward_hooks, *sharding.backward_hooks]
        taken = [(hooks := handle.hooks_dict_ref(), handle.id, hooks.pop(handle.id)) for handle in handles]
        try:
            yield
        finally:
            for hooks, number, hook in taken:
                hooks[number] = hook


def check(zero: Zero, trained: bool) -> None:
    """Raises AlignError for a stage that the role cannot have."""
    if zero.stage not in ((1, 2, 3) if trained else (3,)):
        what = "a trained role takes stage 1, 2 or 3" if trained else "a frozen role takes stage 3"
        raise AlignError(f"ZeRO stage {zero.stage}: {what}, or zero=none")


def settings(zero: Zero, max_grad_norm: float, trained: bool, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for one role."""
    sharding: dict[str, Any] = {"stage": zero.stage}
    if zero.stage == 3:
        sharding["stage3_param_persistence_threshold"] = 0
    if zero.offload and trained:
        sharding["offload_optimizer"] = {"device": "cpu"}
    if zero.offload and zero.stage == 3:
        sharding["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": sharding,
        "bf16": {"enabled": bf16},
        "steps_per_print": NEVER,
    }


def _connected() -> Any:
    """deepspeed with a process group: one that is there already, torchrun's, or one of this process alone."""
    import deepspeed

    # torch 2.13 renamed a collective that DeepSpeed 0.19 calls by its old name
    warnings.filterwarnings("ignore", ".*torch.distributed.*is deprecated.*", FutureWarning)
    if deepspeed.comm.is_initialized():
        return deepspeed
    cuda = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if not torch.distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            torch.distributed.init_process_group(backend)
        else:
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    if torch.distributed.get_world_size() == 1:
        # one process has no peers to share memory with; 0.19 would compile an operator for that
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    return deepspeed


@contextmanager
def _local_rank() -> Iterator[None]:
    """LOCAL_RANK for a process that torchrun did not start: DeepSpeed reads it to make and run an engine."""
    missing = "LOCAL_RANK" not in os.environ
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        yield
    finally:
        if missing:
            del os.environ["LOCAL_RANK"]
