"""The device, precision and kernels of a run, and objects that stages are built with.

A stage's `build(stage, runtime)` is given one; torch comes in with the functions, not with the module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.build import plugs
from align.build.checks import check_judge
from align.build.prompts import longest_prompt
from align.build.rewards import check_reward, make_reward
from align.config import Zero
from align.config.values import Plug
from align.errors import AlignError
from align.imports import locate
from align.plan.plan import RunPlan, StagePlan
from align.plan.spec import AUTO
from align.stages.fingerprint import measured_linear

if TYPE_CHECKING:
    import torch

    from align.report.report import StageReport


class Runtime:
    """Resources that the stages of one run share. Raises AlignError for a device or precision that is not there."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.seed = plan.seed

    @cached_property
    def device(self) -> torch.device:
        import torch

        name = self.plan.device
        if name == AUTO:
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise AlignError(f"device={name}: use auto, cpu, cuda or cuda:0") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise AlignError(f"device={name}: this torch ({torch.__version__}) sees no GPU\n  use device=cpu")
        return device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of frozen weights; weights that train are float32."""
        import torch

        name = self.plan.precision
        if name == AUTO:
            name = "bf16" if self.device.type == "cuda" else "fp32"
        known = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        if name == "bf16" and self.device.type == "cpu" and not known:
            raise AlignError("precision=bf16: this CPU has no instructions for it\n  use precision=fp32")
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]

    def stages(self) -> list[tuple[StagePlan, Any]]:
        """Each stage of the plan with the object that runs it. Sets the kernel of linear layers of all models.

        `cpu_linear=auto` keeps what was measured before.
        """
        from align.engine.linear import use_kernel

        starts = {stage.spec.name: self._start(stage) for stage in self.plan.stages}
        home = Path(self.plan.runs).expanduser() / self.plan.name
        use_kernel(self.plan.cpu_linear, measured_linear(home, starts))
        return [(stage, locate(stage.spec.build)(stage, self)) for stage in self.plan.stages]

    def _start(self, stage: StagePlan) -> str | None:
        """The folder that the user names for a stage to start from."""
        found = stage.input("path") or stage.input("actor")
        return found.path if found is not None and found.key != "model" else None

    data = staticmethod(plugs.make)
    sources = staticmethod(plugs.sources)
    """As `data`; a list of sources where `path` is a list of files."""
    peft = staticmethod(plugs.peft)

    def longest_prompt(self, stage: StagePlan) -> Callable[[list[str]], int]:
        """longest_prompt(folders of policies) -> the most tokens of a prompt that a stage takes."""
        return lambda paths: longest_prompt(stage, paths)

    def train_engine(
        self, module: Any, learning_rate: float | dict[str, float] | None, max_grad_norm: float, zero: Zero | None
    ) -> Any:
        """The engine that computes and trains one model: plain torch, or DeepSpeed."""
        if zero is None:
            from align.engine.plain import PlainEngine

            return PlainEngine(module, learning_rate, max_grad_norm)
        from align.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(module, learning_rate, max_grad_norm, zero)

    def rollout_engine(
        self, stage: StagePlan, policy: Any, base: str, tokenizer: Any, longest: int, report: StageReport
    ) -> Any:
        """The engine that writes completions of a policy, whose base model lies in the folder `base`.

        `longest` is the most tokens of a prompt and its completion together. A class of the user's is given its own
        settings, and of what align has for it (options, policy, base, tokenizer, longest, tell) the arguments that it
        names.
        """
        section = stage.sections.rollout
        plug = Plug(section.target, section.own, "rollout")
        context = {
            "options": section.options, "policy": policy, "base": base, "tokenizer": tokenizer, "longest": longest,
            "tell": report.say,
        }  # fmt: skip
        return plugs.make_with(plug, **context)

    def judge(self, judge: Plug | None, stage: StagePlan) -> dict[str, Any]:
        """`check_judge()` and `make_judge(inputs, out, report, tokenizer)` of a stage's judge; {} without one."""
        if judge is None:
            return {}
        return {
            "check_judge": lambda: check_judge(judge, stage, self.seed),
            "make_judge": self.reward_maker(judge, stage),
        }

    def reward_maker(self, reward: Plug, stage: StagePlan, told: bool = True) -> Callable[..., Any]:
        """make(inputs, out, report, tokenizer) -> the reward, apart from all roles; not `told`: silently."""

        def make(inputs: dict[str, str], out: Path, report: StageReport, tokenizer: Any) -> Any:
            from align.rewards.parts import check_reachable
            from align.roles.placement import RunContext

            check_reachable(check_reward(reward))
            context = RunContext(
                device=self.device, dtype=self.dtype, engine=self.train_engine, out=out,
                tell=report.say if told else lambda line: None,
            )  # fmt: skip
            return make_reward(reward, stage, inputs, context, tokenizer)

        return make
