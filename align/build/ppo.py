"""The stage `ppo` from its plan: roles, rollout engine, reward, and the loop of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.build.checks import check_ppo, watch_plug, watch_settings
from align.build.plugs import made, make, make_or_keep, make_with, peft
from align.build.prompts import longest_prompt
from align.build.rewards import check_reward, make_reward
from align.build.runtime import Runtime
from align.build.zero import zero_of
from align.config.values import Plug
from align.plan.plan import Section, StagePlan

if TYPE_CHECKING:
    from align.ppo.step import PPO
    from align.report.report import StageReport


def build(stage: StagePlan, runtime: Runtime) -> Any:
    from align.stages.ppo.stage import PPOStage

    return PPOStage(
        options=stage.options,
        data=runtime.data(stage.options.data),
        seed=runtime.seed,
        check_roles=lambda inputs: _check(stage, runtime, inputs),
        assemble=lambda *given: assemble(stage, runtime, *given),
        longest_prompt=runtime.longest_prompt(stage),
        make_watch=_watch_maker(stage, runtime),
    )


def _check(stage: StagePlan, runtime: Runtime, inputs: dict[str, str]) -> None:
    runtime.dtype  # noqa: B018 - refuses bf16 where the CPU lacks it
    check_ppo(stage, runtime.plan, runtime.device, inputs)


def _watch_maker(stage: StagePlan, runtime: Runtime) -> Callable[..., Any] | None:
    """make(inputs, out, report, tokenizer) -> the watch over the run; None where there is none."""
    watch = stage.sections.watch
    if watch is None:
        return None
    make_judge = runtime.reward_maker(watch.options.judge, stage)
    return lambda *given: made(watch_plug(watch), make_judge(*given), **watch_settings(watch))


def assemble(
    stage: StagePlan, runtime: Runtime, inputs: dict[str, str], out: Path, report: StageReport, tokenizer: Any
) -> PPO:
    """Load the roles, then the rollout engine, then the reward, and make the loop of them."""
    import torch

    from align.ppo.step import PPO
    from align.rewards.parts import check_reachable
    from align.roles.modules import has_router
    from align.roles.placement import Placement, RunContext
    from align.roles.tokenizer import stop_ids
    from align.types import Sampling

    sections, options, lines = stage.sections, stage.options, []
    check_reachable(check_reward(sections.reward))

    def tell(line: str) -> None:
        lines.append(line)
        report.say(line)

    context = RunContext(
        device=runtime.device, dtype=runtime.dtype, engine=runtime.train_engine, out=out,
        max_grad_norm=options.max_grad_norm, steps=options.optimizer_steps,
        gradient_checkpointing=options.gradient_checkpointing, tell=tell,
    )  # fmt: skip
    torch.manual_seed(runtime.seed)  # a new adapter's start is random
    placement = Placement(context, role("actor", sections.actor, inputs))
    role("reference", sections.reference, inputs).place(placement)
    if sections.critic is not None:
        role("critic", sections.critic, inputs).place(placement)
    reward = make_reward(sections.reward, stage, inputs, context, tokenizer, placement)
    report.write_card(start=lines)
    roles = placement.roles(options.micro_batch_size, options.micro_batch_tokens)
    sizes, router = roles.sizes(), {"router_loss": 0.0} if has_router(roles.actor.model) else {}
    report.say(f"parameters that train: {', '.join(f'{n:,} of the {role}' for role, n in sizes.items())}")
    report.write_card(trained_parameters=sizes, **router)
    rollout = sections.rollout.options
    sampling = Sampling(rollout.temperature, rollout.max_new_tokens, stop_ids(inputs["actor"], tokenizer))
    longest = longest_prompt(stage, [inputs["actor"]]) + sampling.max_new_tokens
    engine = runtime.rollout_engine(stage, roles.actor, placement.actor.base, tokenizer, longest, report)
    return PPO(
        roles, engine, reward, make(sections.advantage), tokenizer, sampling, options, rollout.samples_per_prompt,
        runtime.seed, make_or_keep(sections.policy_loss),
    )  # fmt: skip


def role(name: str, section: Section, inputs: dict[str, str]) -> Any:
    """A role as its class describes it, with the settings that the class takes."""
    plug = Plug(section.target, section.own, name)
    values: dict[str, Any] = {**vars(section.options), "path": inputs.get(name, "auto")}
    if "zero" in values:
        values["zero"] = zero_of(values["zero"], trained=name != "reference")
    if "peft" in values:
        from align.peft.rates import rate

        values["peft"] = peft(values["peft"])
        values["learning_rate"] = rate(values["learning_rate"], values["peft"], ppo=True)
    return make_with(plug, **values)
