"""Rollouts and updates on made-up data, for tests of roles on one backbone."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from align.roles.roles import Roles
from align.types import Experience, Rollout, Scores

RATE = 1e-2
DEFAULT = object()
WANT = {"logp", "ref_logp", "value", "reward"}


def lora(**more) -> LoraConfig:
    return LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": "all-linear", **more})


def reward_model(base: str, folder: Path, number: int, **more) -> str:
    """The folder of a random LoRA reward model on `base`, whose score has mean 0.5 + number and deviation 2."""
    torch.manual_seed(2)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = get_peft_model(plain, lora(task_type="SEQ_CLS", base_model_name_or_path=base, **more))
    generator = torch.Generator().manual_seed(5 + number)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    (folder / "card.json").write_text(json.dumps({"score": {"mean": 0.5 + number, "std": 2.0}}))
    return str(folder)


def rollout(rows: int = 4, seed: int = 0) -> Rollout:
    """Random rows, prompts padded left and responses right."""
    generator = torch.Generator().manual_seed(seed)
    mask_BP, mask_BT = torch.ones(rows, 6, dtype=torch.bool), torch.ones(rows, 5, dtype=torch.bool)
    for row in range(rows):
        mask_BP[row, : row % 4] = False
        mask_BT[row, 5 - row % 3 :] = False
    ids = torch.randint(5, 250, (rows, 11), generator=generator)
    zeros = torch.zeros(rows, 5)
    return Rollout(
        ids[:, :6], mask_BP, ids[:, 6:], mask_BT, mask_BT, zeros, torch.arange(rows), torch.zeros(rows).long(),
        torch.ones(rows).bool(), torch.zeros(rows).long(), 0.8,
    )  # fmt: skip


def train(roles: Roles, steps: int = 1, who: tuple[str, ...] = ("actor", "critic")) -> list[dict[str, float]]:
    """Steps of two micro-batches on a made-up loss of each role."""

    def loss(new: Scores) -> dict[str, torch.Tensor]:
        losses = {}
        if new.logp_BT is not None:
            losses["actor"] = new.logp_BT.sum() / 10
        if new.value_BT is not None:
            losses["critic"] = (new.value_BT - 1).square().sum() / 10
        return losses

    norms = []
    for step in range(steps):
        data = rollout(seed=step)
        whole = Experience(data, Scores(), torch.zeros_like(data.logp_BT), None)
        for rows in (torch.tensor([0, 1]), torch.tensor([2, 3])):
            roles.train(whole[rows].trim(), loss, last=bool(rows[0] == 2), roles=who)
        norms.append(roles.step())
    return norms


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


def close(one: Scores, other: Scores, want=WANT, atol=1e-5) -> None:
    for name in want:
        a, b = (getattr(s, f"{name}_BK" if name == "reward" else f"{name}_BT") for s in (one, other))
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
