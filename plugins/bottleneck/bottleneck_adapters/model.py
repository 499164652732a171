"""A model with bottleneck adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from bottleneck_adapters.config import BottleneckConfig
from bottleneck_adapters.layer import BASE, BottleneckLayer, Parallel, Sequential

LLAMA = {"attention": "self_attn.o_proj", "feed_forward": "mlp.down_proj", "block": "mlp"}
NEOX = {"attention": "attention.dense", "feed_forward": "mlp.dense_4h_to_h", "block": "mlp"}
FALCON = {**NEOX, "attention": "self_attention.dense"}
MODELS = {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "phi3"], LLAMA),
    "gpt2": {"attention": "attn.c_proj", "feed_forward": "mlp.c_proj", "block": "mlp"},
    "gpt_neox": NEOX,
    **dict.fromkeys(["bloom", "falcon"], FALCON),
}
"""By model type: the projections at the end of attention and feed-forward, and the feed-forward block itself.

The projections and not the blocks, since attention returns tuples, and BLOOM's blocks add the residual themselves.
"""


class BottleneckModel(BaseTuner):
    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict) -> BottleneckConfig:
        if peft_config.target_modules is None:
            kind = model_config["model_type"]
            if kind not in MODELS:
                raise ValueError(
                    f"bottleneck adapters do not know where a model of type {kind} has its feed-forward: "
                    "use target_modules, such as [mlp] for parallel, else [self_attn.o_proj, mlp.down_proj]"
                )
            names = MODELS[kind]
            places = {"houlsby": ["attention", "feed_forward"], "pfeiffer": ["feed_forward"], "parallel": ["block"]}
            peft_config.target_modules = {names[place] for place in places[peft_config.placement]}
        return peft_config

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        super()._check_new_adapter_config(config)
        if len({other.parallel for other in self.peft_config.values()}) > 1:
            raise ValueError(
                "a parallel adapter and others cannot share a model: the names of the layers inside the block that it "
                "stands beside would change"
            )

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        width = self.model.config.get_text_config().hidden_size
        layer = (Parallel if peft_config.parallel else Sequential)(target, width)
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter does not train until it is asked to
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """PEFT's own wants a weight in every module; a block has none. Adapters are made where the weights are."""
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError("bottleneck adapters have a non-linearity: they cannot be merged")

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's `adapter_names`: inside, row i goes through adapter `adapter_names[i]` ("__base__": none)."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("adapter_names are for evaluation mode")
        if unknown := set(names) - set(self.peft_config) - {BASE}:
            raise ValueError(f"no adapter of this name: {', '.join(sorted(unknown))}")
        layers = [m for m in self.modules() if isinstance(m, BottleneckLayer | AuxiliaryTrainingWrapper)]
        handles = [m.register_forward_pre_hook(partial(_with_names, names), with_kwargs=True) for m in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _with_names(names: list[str], module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, {**kwargs, "adapter_names": names}
