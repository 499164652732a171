"""The critic: a backbone of its own with a value head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.roles.modules import ValueModule, plain
from align.types import Rollout, TrainEngine

if TYPE_CHECKING:
    from align.roles.specs import Critic, Setting

HEAD_FILE = "value_head.safetensors"


def value_head(model: PreTrainedModel | PeftModel, path: str) -> tuple[nn.Linear, str]:
    """Takes the score head off `model` and returns it as a value head, with what was done in words.

    A critic's folder gives its own head back. A reward model's head is divided by the deviation of its
    score and shifted by its mean (`card.json`), so that values come in the units of the normalised score
    (initialised from the reward model: Huang et al. 2024, arXiv 2403.17031). From a policy: zeros.
    """
    base = plain(model)
    score = base.score
    weight = score.modules_to_save["default"].weight if hasattr(score, "modules_to_save") else score.weight
    head = nn.Linear(weight.shape[1], 1)
    folder = Path(path)
    base.score = nn.Identity()
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    if (folder / HEAD_FILE).exists():
        head.load_state_dict(load_file(folder / HEAD_FILE))
        return head, "its own value head"
    card = json.loads((folder / "card.json").read_text()) if (folder / "card.json").exists() else {}
    if "score" not in card:
        return head, "a value head of zeros"
    with torch.no_grad():
        head.weight.copy_(weight.float() / card["score"]["std"])
        head.bias.fill_(-card["score"]["mean"] / card["score"]["std"])
    return head, "the reward model's head, divided by its score's deviation"


class ValueCritic:
    """value_BT of a rollout, with gradient."""

    def __init__(self, model: PreTrainedModel | PeftModel, head: nn.Linear, engine: TrainEngine) -> None:
        self.model = model
        self.head = head
        self.engine = engine

    @classmethod
    def build(cls, model: PreTrainedModel | PeftModel, head: nn.Linear, spec: Critic, setting: Setting) -> ValueCritic:
        module = ValueModule(model, head, setting.autocast).to(setting.device).eval()
        engine = setting.engine(module, spec.learning_rate, setting.max_grad_norm, spec.zero)
        return cls(model, head, engine)

    def value_BT(self, rollout: Rollout) -> Tensor:
        length = rollout.response_ids_BT.shape[1]
        return self.engine.forward(rollout.input_ids_BN(), rollout.mask_BN(), length)

    def step(self) -> float:
        return self.engine.step()

    def save(self, directory: Path) -> None:
        """Backbone or adapter, and the value head beside it."""
        directory.mkdir(parents=True, exist_ok=True)
        with self.engine.gathered():
            head = {name: tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
            save_file(head, directory / HEAD_FILE)
            if not isinstance(self.model, PeftModel):
                self.model.save_pretrained(
                    directory, state_dict={**self.model.state_dict(), "score.weight": head["weight"]}
                )
                return
            self.model.save_pretrained(directory)
        # the head stands in the place of the score, too: PEFT's configuration says that one is there
        adapter = directory / "adapter_model.safetensors"
        save_file({**load_file(adapter), "base_model.model.score.weight": head["weight"]}, adapter, {"format": "pt"})
