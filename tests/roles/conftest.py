"""Folders of a policy and a reward model on one base, and roles made of them."""

from types import MappingProxyType

import pytest
import torch
from sharing import DEFAULT, RATE, lora, reward_model

from align.engine.plain import PlainEngine
from align.rewards.ensemble import EnsembleReward
from align.rewards.model import ModelReward
from align.roles.placement import Placement, RunContext
from align.roles.roles import Roles
from align.roles.shared_rewards import SharedRewardModels
from align.roles.specs import Actor, Critic, Reference


@pytest.fixture(scope="module")
def sft(lora_model, base, tmp_path_factory) -> str:
    """The folder of a trained adapter on `base`."""
    model = lora_model(seed=3)
    model.peft_config["default"].base_model_name_or_path = base
    folder = tmp_path_factory.mktemp("sft")
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rms(base, tmp_path_factory) -> list[str]:
    """Folders of three reward models: adapters and score heads on the policy's own base, each with its own scale."""
    return [reward_model(base, tmp_path_factory.mktemp("rm"), number) for number in range(3)]


@pytest.fixture(scope="module")
def rm(rms) -> str:
    """The first of them."""
    return rms[0]


@pytest.fixture
def make_roles(sft, rm, tokenizer, tmp_path):
    """make_roles(critic, reward, peft, zero by role, …) -> Roles, the reward and the lines that were said

    The reward is a model where `models` is None, else an ensemble of those in these folders.
    """

    def engine(module, rates, max_grad_norm, zero):
        if zero is None:
            return PlainEngine(module, rates, max_grad_norm)
        from align.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(module, rates, max_grad_norm, zero)

    def make(
        critic="adapter",
        reward="shared",
        peft=DEFAULT,
        path=sft,
        checkpointing=False,
        zero=MappingProxyType({}),
        max_grad_norm=1.0,
        models=None,
        **more,
    ) -> tuple[Roles, ModelReward | EnsembleReward, list[str]]:
        said: list[str] = []
        context = RunContext(
            torch.device("cpu"), torch.float32, engine,
            tmp_path, max_grad_norm=max_grad_norm, gradient_checkpointing=checkpointing, tell=said.append,
        )  # fmt: skip
        torch.manual_seed(0)
        placement = Placement(
            context, Actor(path, "auto", RATE, lora() if peft is DEFAULT else peft, zero.get("actor"))
        )
        Reference("auto", None).place(placement)
        if critic:
            Critic(rm, "auto", RATE, lora(), zero.get("critic"), critic, **more).place(placement)
        shared = SharedRewardModels(context)
        made = [
            ModelReward(p, context, tokenizer, backbone=reward, placement=placement, shared=shared)
            for p in models or [rm]
        ]
        scorer = EnsembleReward({str(i): one for i, one in enumerate(made)}) if models else made[0]
        return placement.roles(micro_batch_size=3), scorer, said

    return make
