"""From a composed configuration to stages, roles and plugs.

torch comes in with the functions, not with the module: composing a configuration needs none.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from align import config
from align.answering import answering, judging, learned_judge, own_reward, policies, watching
from align.checks import absent, check, judged, sampled
from align.errors import AlignError
from align.longest_prompt import longest_prompt
from align.members import learned, model_paths
from align.nodes import as_dataclass, call, call_or_keep, peft, plain_values, sources, target_of
from align.preflight import check_roles, optimizer_steps
from align.rewarding import check_members, check_reward, make_reward, reward_nodes
from align.stages.fingerprint import measured_linear
from align.stages.pipeline import Sources

if TYPE_CHECKING:
    import torch

    from align.ppo.step import PPO
    from align.report.report import StageReport

STAGES = {
    "pretrain": config.Pretrain, "sft": config.SFT, "rm": config.RM,
    "preferences": config.Preferences, "best_of": config.BestOf, "dpo": config.DPO, "kto": config.KTO,
    "ppo": config.PPO, "evaluate": config.Evaluate,
}  # fmt: skip


class Build:
    """Makes what a configuration describes; raises AlignError for values that cannot be."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.stages = check(cfg)
        for key, node in self.rewards().items():
            if "rm" in self.stages and (key != "reward" or "ppo" in self.stages):
                check_members(node, key, cfg.rm.members)
        self.real = {path: _real(path) for path in self._paths()}

    # -- what the pipeline needs to know ------------------------------------------------------

    def sources(self) -> Sources:
        cfg = self.cfg
        paths = {name: cfg[name].path for name in ("sft", "rm", "actor", "reference")}
        paths["best_of"] = cfg.best_of.path if "best_of" in self.stages else "auto"
        paths["critic"] = "auto" if absent(cfg.critic) else cfg.critic.path
        models = {key: self.reward_paths.get(key, ["auto"]) for key, node in reward_nodes(cfg.reward) if learned(node)}
        reward = next((key for key, found in models.items() if found == ["auto"]), next(iter(models), "reward"))
        paths["reward"] = models[reward][0] if models else "auto"
        named = dict.fromkeys(path for found in models.values() for path in found)
        return Sources(
            model=cfg.model,
            paths=paths,
            needs_critic=not absent(cfg.critic),
            learned_reward=bool(models),
            reward_key=f"{reward}.path",
            further_rewards=[path for path in named if path not in ("auto", paths["reward"])],
            sampled=tuple(stage for stage in self.stages if sampled(cfg[stage])),
            policies=policies(self),
            learned_judge=learned_judge(self),
            real=self.real,
            runs=f"{cfg.runs}/{cfg.name}/latest",
            stages=self.stages,
        )

    def _paths(self) -> set[str]:
        """Every path of a model that the configuration names."""
        cfg = self.cfg
        nodes = [cfg.sft, cfg.rm, cfg.best_of, cfg.actor, cfg.critic, cfg.reference]
        named = cfg.preferences.get("policies")
        named = named if OmegaConf.is_list(named) else [named]
        return {str(path) for path in (cfg.model, *named, *(node.get("path") for node in nodes)) if path}

    def rewards(self) -> dict[str, DictConfig]:
        """The reward, and the judges that are asked, by key."""
        judges = (("preferences", self.cfg.preferences), ("rm", self.cfg.rm), ("ppo", self.cfg.watch))
        asked = [
            ("watch" if name == "ppo" else name, node.get("judge")) for name, node in judges if name in self.stages
        ]
        return {"reward": self.cfg.reward, **{f"{name}.judge": node for name, node in asked if node is not None}}

    @cached_property
    def reward_paths(self) -> dict[str, list[str]]:
        """Folders of the reward models that are named, by the reward's key."""
        nodes = [pair for key, node in self.rewards().items() for pair in reward_nodes(node, key) if learned(pair[1])]
        return {key: [_real(path) for path in model_paths(node)] for key, node in nodes if node.path != "auto"}

    @cached_property
    def tracker(self) -> Any:
        return None if absent(self.cfg.tracker) else call(self.cfg.tracker, "tracker")

    def report(self, folder: Path) -> Any:
        """The run's report, with its tracker started."""
        from align.report.report import Report

        if self.tracker:
            self.tracker.start(folder, OmegaConf.to_container(self.cfg, resolve=True))
        return Report(self.tracker)

    def device(self) -> torch.device:
        import torch

        name = self.cfg.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise AlignError(f"device={name}: write auto, cpu, cuda or cuda:0") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise AlignError(f"device={name}: this torch ({torch.__version__}) sees no GPU\n  write device=cpu")
        return device

    def dtype(self) -> torch.dtype:
        import torch

        name = self.cfg.precision
        if name == "auto":
            name = "bf16" if self.device().type == "cuda" else "fp32"
        on_cpu = self.device().type == "cpu"
        if (
            name == "bf16"
            and on_cpu
            and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        ):
            raise AlignError("precision=bf16: this CPU has no instructions for it\n  write precision=fp32")
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]

    @cached_property
    def linear(self) -> Any:
        """The kernel of the linear layers of all models, chosen once a run; `auto` keeps what was measured before."""
        from align.engine.linear import CpuLinear

        cfg = self.cfg
        paths = {"sft": cfg.sft.path, "rm": cfg.rm.path, "ppo": cfg.actor.path}
        starts = {stage: None if paths.get(stage) == "auto" else paths.get(stage) for stage in self.stages}
        return CpuLinear(cfg.cpu_linear, measured_linear(Path(cfg.runs).expanduser() / str(cfg.name), starts))

    # -- stages ---------------------------------------------------------------------------------

    def stage(self, name: str) -> Any:
        """The stage `name`, ready to check and run; `<stage>._target_` names its class."""
        node, cfg = self.cfg[name], self.cfg
        options = as_dataclass(node, STAGES[name])
        shared: dict[str, Any] = {
            "options": options, "seed": cfg.seed, "device": self.device(), "linear": self.linear,
        }  # fmt: skip
        if name == "pretrain":
            extra = {"data": call(node.data, f"{name}.data")}
        elif name == "preferences":
            del shared["linear"]
            extra = answering(self)
        elif name in ("sft", "best_of", "rm"):
            from align.peft.rates import rate

            method, rates = peft(node.peft, f"{name}.peft"), options.learning_rate
            options.learning_rate = [rate(r, method) for r in rates] if isinstance(rates, list) else rate(rates, method)
            data = (call if name == "rm" else sources)(node.data, f"{name}.data")
            extra = {"data": data, "peft": method, "dtype": self.dtype()}
            if name == "rm":
                extra |= {"max_new_tokens": cfg.rollout.max_new_tokens, **judging(self, "rm")}
        elif name in ("dpo", "kto"):
            extra = {"data": call(node.data, f"{name}.data"), **self.direct(options)}
        elif name == "ppo":
            del shared["device"], shared["linear"]
            extra = {"data": call(node.data, f"{name}.data"), "check_roles": self.check_roles, "assemble": self.ppo}
            extra |= {"longest_prompt": partial(longest_prompt, self, name), **watching(self)}
        else:
            asked = bool(options.shots)
            general = None if absent(node.general) else call(node.general, "evaluate.general")
            writes = judged(cfg) or options.diversity or "ppo" in self.stages or not (asked or general)
            extra = {
                "data": call(cfg.ppo.data, "ppo.data") if writes else None,
                "demonstrations": call(cfg.sft.data, "sft.data") if asked else None,
                "general": general,
                "pairs": call(cfg.rm.data, "rm.data") if "rm" in self.stages else None,
                "make_reward": own_reward(self),
                "ppo_steps": cfg.ppo.steps,
                "max_pair_tokens": cfg.rm.max_length,
                "max_new_tokens": cfg.rollout.max_new_tokens,
                "longest_prompt": partial(longest_prompt, self, name),
            }
        return target_of(node, name)(**shared, **extra)

    def direct(self, options: config.DPO | config.KTO) -> dict[str, Any]:
        """What dpo and kto have of PPO's roles; resolves the learning rate in `options` by the actor's method."""
        from align.peft.rates import rate

        method = peft(self.cfg.actor.peft, "actor.peft")
        options.learning_rate = rate(options.learning_rate, method)
        actor = as_dataclass(self.cfg.actor, config.Actor)
        return {"actor": actor, "peft": method, "dtype": self.dtype()}

    # -- PPO ------------------------------------------------------------------------------------

    def check_roles(self, inputs: dict[str, str]) -> None:
        """What can be known of roles, reward and rollout before a model loads."""
        check_roles(self, inputs)

    def ppo(self, inputs: dict[str, str], out: Path, report: StageReport, tokenizer: Any) -> PPO:
        """Loads the roles, then the rollout engine, then the reward; the loop of them."""
        import torch

        from align.ppo.step import PPO
        from align.rewards.parts import check_reachable
        from align.roles.placement import Seating, Setting
        from align.roles.tokenizer import stop_ids
        from align.types import Sampling

        check_reachable(check_reward(self.cfg.reward, "reward"))
        cfg, said = self.cfg, []

        def tell(line: str) -> None:
            said.append(line)
            report.say(line)

        setting = Setting(
            device=self.device(), dtype=self.dtype(), engine=self.engine, out=out,
            max_grad_norm=cfg.ppo.max_grad_norm, steps=optimizer_steps(cfg.ppo),
            gradient_checkpointing=cfg.ppo.gradient_checkpointing,
            linear=self.linear, tell=tell,
        )  # fmt: skip
        torch.manual_seed(cfg.seed)  # a new adapter's start is random
        seats = Seating(setting, self.role("actor", inputs))
        self.role("reference", inputs).seat(seats)
        if not absent(cfg.critic):
            self.role("critic", inputs).seat(seats)
        reward = make_reward(self, cfg.reward, inputs, setting, tokenizer, seats)
        report.write_card(cpu_linear=self.linear.facts(), start=said)
        roles = seats.roles(cfg.ppo.micro_batch_size, cfg.ppo.micro_batch_tokens)
        sampling = Sampling(cfg.rollout.temperature, cfg.rollout.max_new_tokens, stop_ids(inputs["actor"], tokenizer))
        options = as_dataclass(cfg.ppo, config.PPO)
        longest = longest_prompt(self, "ppo", [inputs["actor"]]) + sampling.max_new_tokens
        choose = target_of(cfg.rollout, "rollout")
        engine = choose(
            as_dataclass(cfg.rollout, config.Rollout), roles.actor, seats.actor.base, tokenizer, longest, report.say
        )
        return PPO(
            roles, engine, reward, call(cfg.advantage, "advantage"), tokenizer, sampling, options,
            cfg.rollout.samples_per_prompt, cfg.seed, call_or_keep(cfg.policy_loss, "policy_loss"),
        )  # fmt: skip

    def role(self, name: str, inputs: dict[str, str]) -> Any:
        node = self.cfg[name]
        given: dict[str, Any] = {"path": inputs.get(name, "auto"), "zero": self.zero(node.zero, f"{name}.zero")}
        values = plain_values(node)
        if "peft" in node:
            from align.peft.rates import rate

            given["peft"] = peft(node.peft, f"{name}.peft")
            values["learning_rate"] = rate(values["learning_rate"], given["peft"], ppo=True)
        return target_of(node, name)(**{**values, **given})

    def zero(self, node: DictConfig | None, key: str, trained: bool = True) -> config.Zero | None:
        """A role's ZeRO settings; checks that DeepSpeed is there, and the stage one that the role can have."""
        if absent(node):
            return None
        zero = call(node, key)
        if zero.stage not in ((1, 2, 3) if trained else (3,)):
            allowed = (
                "stage1, stage2 or stage3" if trained else "stage3 or stage3_offload (a frozen model has no optimizer)"
            )
            raise AlignError(f"{key}: stage {zero.stage} is not possible here\n  write zero@{key}=none, {allowed}")
        from align.installed import require

        require("deepspeed", f"zero@{key}=stage{zero.stage}", f"zero@{key}=none")
        return zero

    def engine(self, module: Any, learning_rate: float | None, max_grad_norm: float, zero: config.Zero | None) -> Any:
        """What computes and trains one model: plain torch, or DeepSpeed."""
        if zero is None:
            from align.engine.plain import PlainEngine

            return PlainEngine(module, learning_rate, max_grad_norm)
        from align.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(module, learning_rate, max_grad_norm, zero)


def _real(path: str) -> str:
    """Where a path lies now, since `runs/NAME/latest` will be another place; a hub name as it is."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path
