"""From a composed configuration to stages, roles and plugs: the only caller of Hydra's instantiate.

torch comes in with the functions, not with the module: composing a configuration needs none.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from align import config
from align.errors import AlignError
from align.stages.pipeline import Sources, order

if TYPE_CHECKING:
    import torch

    from align.report.report import StageReport
    from align.roles.specs import Setting
    from align.stages.ppo import PPO

MODEL_REWARD = config.RewardModel._target_


class Build:
    """Makes what a configuration describes."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.stages = order(list(cfg.stages), cfg.evaluate.judge is not None)

    # -- what the pipeline needs to know ------------------------------------------------------

    def sources(self) -> Sources:
        cfg = self.cfg
        paths = {name: cfg[name].path for name in ("sft", "rm", "actor", "reference")}
        paths["critic"] = "auto" if absent(cfg.critic) else cfg.critic.path
        learned = [node for node in reward_nodes(cfg.reward) if node._target_ == MODEL_REWARD]
        paths["reward"] = next((node.path for node in learned if node.path != "auto"), "auto")
        return Sources(
            model=cfg.model,
            paths=paths,
            needs_critic=not absent(cfg.critic),
            learned_reward=any(node.path == "auto" for node in learned) or paths["reward"] != "auto",
            runs=f"{cfg.runs}/{cfg.name}/latest",
            stages=self.stages,
        )

    def report(self, folder: Path) -> Any:
        """The run's report, with its tracker started."""
        from align.report.report import Report

        tracker = None if absent(self.cfg.tracker) else instantiate(self.cfg.tracker)
        if tracker:
            tracker.start(folder, OmegaConf.to_container(self.cfg, resolve=True))
        return Report(tracker)

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

        choices = {"fp32": torch.float32, "bf16": torch.bfloat16}
        name = self.cfg.precision
        if name == "auto":
            name = "bf16" if self.device().type == "cuda" else "fp32"
        if name not in choices:
            raise AlignError(f"precision={name}: write auto, fp32 or bf16")
        return choices[name]

    # -- stages ---------------------------------------------------------------------------------

    def stage(self, name: str) -> Any:
        """The stage `name`, ready to check and run; `<stage>._target_` names its class."""
        node, cfg = self.cfg[name], self.cfg
        options = as_dataclass(node, getattr(config, type_of(name)))
        shared: dict[str, Any] = {"options": options, "seed": cfg.seed, "device": self.device()}
        if name == "pretrain":
            extra = {"data": instantiate(node.data)}
        elif name in ("sft", "rm"):
            extra = {"data": instantiate(node.data), "peft": peft(node.peft, f"{name}.peft"), "dtype": self.dtype()}
            if name == "rm":
                extra["max_new_tokens"] = cfg.rollout.max_new_tokens
        elif name == "ppo":
            del shared["device"]
            extra = {"data": instantiate(node.data), "check_roles": self.check_roles, "assemble": self.ppo}
        else:
            extra = {
                "data": instantiate(cfg.ppo.data),
                "pairs": instantiate(cfg.rm.data) if "rm" in self.stages else None,
                "max_new_tokens": cfg.rollout.max_new_tokens,
                "max_prompt_tokens": cfg.ppo.max_prompt_tokens,
            }
        return get_class(node._target_)(**shared, **extra)

    # -- PPO ------------------------------------------------------------------------------------

    def check_roles(self, inputs: dict[str, str]) -> None:
        """What can be known of roles, reward and rollout before a model loads."""
        from align.roles.folder import CAUSAL, SCORE, inspect
        from align.roles.start import look
        from align.roles.tokenizer import load_tokenizer
        from align.rollout.auto import check_context, check_rollout
        from align.stages.ppo_stage import check_ranges

        cfg = self.cfg
        advantage = instantiate(cfg.advantage)
        if advantage.needs_critic and absent(cfg.critic):
            raise AlignError("advantage=gae needs a critic: write critic=own, or advantage=rloo with critic=none")
        check_ranges(as_dataclass(cfg.ppo, config.PPO), cfg.rollout.samples_per_prompt, advantage.min_samples)
        for name in ("actor", "critic", "reference", "reward"):
            if not absent(cfg[name]) and "zero" in cfg[name]:
                self.zero(cfg[name].zero, f"{name}.zero", trained=name in ("actor", "critic"))
        for node in reward_nodes(cfg.reward):
            if node._target_ != MODEL_REWARD and "terms" not in node:
                call(node, "reward")
        if "reward" in inputs:
            inspect(inputs["reward"], "reward.path", SCORE)
        if "critic" in inputs:
            look(inputs["critic"], "critic", (CAUSAL, SCORE))
        if "reference" in inputs:
            inspect(inputs["reference"], "reference.path", CAUSAL)
        if "actor" in inputs:
            folder = inspect(inputs["actor"], "actor.path", CAUSAL)
            load_tokenizer(inputs["actor"], "actor.path")
            check_context(folder.config(), cfg.ppo.max_prompt_tokens, cfg.rollout.max_new_tokens, "actor.path")
            check_rollout(cfg.rollout.engine, folder.config(), not absent(cfg.actor.peft), self.device().type == "cpu")

    def ppo(self, inputs: dict[str, str], out: Path, report: StageReport) -> PPO:
        """Loads the roles, then the rollout engine, then the reward; the loop of them."""
        from align.roles.roles import Roles
        from align.roles.specs import Setting
        from align.roles.tokenizer import load_tokenizer, stop_ids
        from align.rollout.auto import choose
        from align.stages.ppo import PPO
        from align.types import Sampling

        cfg = self.cfg
        setting = Setting(
            device=self.device(), dtype=self.dtype(), engine=self.engine, out=out,
            max_grad_norm=cfg.ppo.max_grad_norm, tell=report.say,
        )  # fmt: skip
        tokenizer = load_tokenizer(inputs["actor"], "actor.path")
        actor_spec = self.role("actor", inputs)
        begun = actor_spec.load(setting)
        reference = self.role("reference", inputs).build(begun, actor_spec, setting)
        actor = actor_spec.build(begun, setting)
        critic = None if absent(cfg.critic) else self.role("critic", inputs).build(setting)
        roles = Roles(actor, critic, reference(actor), cfg.ppo.micro_batch_size)
        reward = self.reward(cfg.reward, inputs, setting, tokenizer)
        sampling = Sampling(cfg.rollout.temperature, cfg.rollout.max_new_tokens, stop_ids(inputs["actor"], tokenizer))
        options = as_dataclass(cfg.ppo, config.PPO)
        longest = options.max_prompt_tokens + sampling.max_new_tokens
        engine = choose(as_dataclass(cfg.rollout, config.Rollout), actor, begun.base, tokenizer, longest, report.say)
        return PPO(
            roles, engine, reward, instantiate(cfg.advantage), tokenizer, sampling, options,
            cfg.rollout.samples_per_prompt, cfg.seed,
        )  # fmt: skip

    def role(self, name: str, inputs: dict[str, str]) -> Any:
        node = self.cfg[name]
        given: dict[str, Any] = {"path": inputs.get(name, "auto"), "zero": self.zero(node.zero, f"{name}.zero")}
        if "peft" in node:
            given["peft"] = peft(node.peft, f"{name}.peft")
        return get_class(node._target_)(**{**plain_values(node), **given})

    def reward(self, node: DictConfig, inputs: dict[str, str], setting: Setting, tokenizer: Any) -> Any:
        """A reward; the terms of a sum one by one; a learned model with what it needs to load."""
        if "terms" in node:
            terms = {name: self.reward(term, inputs, setting, tokenizer) for name, term in node.terms.items()}
            return get_class(node._target_)(terms=terms, weights=OmegaConf.to_container(node.weights, resolve=True))
        if node._target_ != MODEL_REWARD:
            return call(node, "reward")
        path = inputs["reward"] if node.path == "auto" else node.path
        zero = self.zero(node.zero, "reward.zero", trained=False) if "zero" in node else None
        return get_class(node._target_)(path, setting, tokenizer, node.normalize, zero)

    def zero(self, node: DictConfig | None, key: str, trained: bool = True) -> config.Zero | None:
        """A role's ZeRO settings; checks that DeepSpeed is there, and the stage one that the role can have."""
        if absent(node):
            return None
        zero = instantiate(node)
        if zero.stage not in ((1, 2, 3) if trained else (3,)):
            allowed = (
                "stage1, stage2 or stage3" if trained else "stage3 or stage3_offload (a frozen model has no optimizer)"
            )
            raise AlignError(f"{key}: stage {zero.stage} is not possible here\n  write zero@{key}=none, {allowed}")
        from align.engine.installed import require

        require("deepspeed", f"zero@{key}=stage{zero.stage}", f"zero@{key}=none")
        return zero

    def engine(self, module: Any, learning_rate: float | None, max_grad_norm: float, zero: config.Zero | None) -> Any:
        """What computes and trains one model: plain torch, or DeepSpeed."""
        if zero is None:
            from align.engine.plain import PlainEngine

            return PlainEngine(module, learning_rate, max_grad_norm)
        from align.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(module, learning_rate, max_grad_norm, zero)


def absent(node: DictConfig | None) -> bool:
    """The node is none: not there, or a `none` plug."""
    return node is None or node.get("_target_") == "align.config.none"


def reward_nodes(node: DictConfig) -> list[DictConfig]:
    """A reward and, if it is a sum, its terms."""
    return [node, *(n for term in node.get("terms", {}).values() for n in reward_nodes(term))]


def peft(node: DictConfig | None, key: str) -> Any:
    """A peft.PeftConfig, or None for full fine-tuning."""
    return None if absent(node) else call(node, key)


def call(node: DictConfig, key: str) -> Any:
    """Instantiates a plug; what its class refuses is said with the config key."""
    from hydra.errors import InstantiationException

    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, AlignError):
            raise cause from None
        raise AlignError(f"{key}: {node._target_} refuses its arguments: {str(cause).splitlines()[0]}") from error


def plain_values(node: DictConfig) -> dict[str, Any]:
    """The node's own scalars, without `_target_` and without what is built apart."""
    values = OmegaConf.to_container(node, resolve=True)
    return {k: v for k, v in values.items() if k not in ("_target_", "peft", "zero", "path", "data")}


def as_dataclass(node: DictConfig, cls: type) -> Any:
    """The node's values in its dataclass; nodes inside are left out."""
    values = OmegaConf.to_container(node, resolve=True)
    names = {f.name for f in fields(cls)} - {"data", "peft"}
    return cls(**{k: v for k, v in values.items() if k in names})


def type_of(stage: str) -> str:
    return {"pretrain": "Pretrain", "sft": "SFT", "rm": "RM", "ppo": "PPO", "evaluate": "Evaluate"}[stage]
