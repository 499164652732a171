"""The second argument of a stage's `build(stage, runtime)`: objects of the run, and makers of plugs. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from align.config.values import Plug
from align.plan.plan import StagePlan


class Runtime(Protocol):
    """The run that stages are built for; `align.build.runtime` has it."""

    seed: int
    device: Any
    """torch.device of the models."""
    dtype: Any
    """torch.dtype of frozen weights; weights that train are float32."""

    def data(self, plug: Plug) -> Any: ...
    def sources(self, plug: Plug) -> Any: ...
    def peft(self, plug: Plug | None) -> Any: ...
    def rollout_engine(
        self, stage: StagePlan, policy: Any, base: str, tokenizer: Any, longest: int, report: Any
    ) -> Any: ...
    def judge(self, judge: Plug | None, stage: StagePlan) -> dict[str, Any]: ...
    def reward_maker(self, reward: Plug, stage: StagePlan) -> Callable[..., Any]: ...
    def longest_prompt(self, stage: StagePlan) -> Callable[[list[str]], int]: ...
