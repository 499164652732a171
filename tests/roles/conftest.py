"""Folders of a policy and a reward model on one base, and roles made of them."""

import json
from types import MappingProxyType

import pytest
import torch
from peft import get_peft_model
from sharing import DEFAULT, RATE, lora
from transformers import AutoModelForSequenceClassification

from align.engine.plain import PlainEngine
from align.rewards.model import ModelReward
from align.roles.roles import Roles
from align.roles.seating import Seating, Setting
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
def rm(base, tmp_path_factory) -> str:
    """The folder of a reward model: adapter and score head on the policy's own base."""
    torch.manual_seed(2)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = get_peft_model(plain, lora(task_type="SEQ_CLS", base_model_name_or_path=base))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("rm")
    model.save_pretrained(folder)
    (folder / "card.json").write_text(json.dumps({"score": {"mean": 0.5, "std": 2.0}}))
    return str(folder)


@pytest.fixture
def make_roles(sft, rm, tokenizer, tmp_path):
    """make_roles(critic, reward, peft, zero by role, …) -> Roles, the reward and the lines that were said"""

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
        **more,
    ) -> tuple[Roles, ModelReward, list[str]]:
        said: list[str] = []
        setting = Setting(
            torch.device("cpu"), torch.float32, engine,
            tmp_path, max_grad_norm=max_grad_norm, gradient_checkpointing=checkpointing, tell=said.append,
        )  # fmt: skip
        torch.manual_seed(0)
        seats = Seating(setting, Actor(path, "auto", RATE, lora() if peft is DEFAULT else peft, zero.get("actor")))
        Reference("auto", None).seat(seats)
        if critic:
            Critic(rm, "auto", RATE, lora(), zero.get("critic"), critic, **more).seat(seats)
        model = ModelReward(rm, setting, tokenizer, backbone=reward, seats=seats)
        return seats.roles(micro_batch_size=3), model, said

    return make
