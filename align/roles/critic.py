"""The critic's value head: where it starts from, and the folder it leaves."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.peft.prompts import prompted, save_encoder
from align.peft.stateful import whole_ranks
from align.roles.backbone import ACTOR, CRITIC, Backbone
from align.roles.modules import plain

HEAD_FILE = "value_head.safetensors"
SCORE_WEIGHT = "base_model.model.score.weight"


def value_head(score_1D: Tensor | None, path: str, width: int) -> tuple[nn.Linear, str]:
    """The value head of a critic that starts from `path`, whose score head has weights `score_1D`; and in words.

    A critic's folder gives its own head back. A reward model's head is divided by the deviation of its
    score and shifted by its mean (`card.json`), so that values come in the units of the normalised score
    (initialised from the reward model: Huang et al. 2024, arXiv 2403.17031). From a policy: zeros.
    """
    head = nn.Linear(width, 1)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    folder = Path(path)
    if (folder / HEAD_FILE).exists():
        head.load_state_dict(load_file(folder / HEAD_FILE))
        return head, "its own value head"
    card = json.loads((folder / "card.json").read_text(encoding="utf-8")) if (folder / "card.json").exists() else {}
    if score_1D is None or "score" not in card:
        return head, "a value head of zeros"
    with torch.no_grad():
        head.weight.copy_(score_1D.float() / card["score"]["std"])
        head.bias.fill_(-card["score"]["mean"] / card["score"]["std"])
    return head, "the reward model's head, divided by its score's deviation"


def take_score(model: PreTrainedModel | PeftModel) -> Tensor:
    """Takes the score head off a sequence-classification model; returns its weights, shape 1 x D."""
    base = plain(model)
    score = base.score
    base.score = nn.Identity()
    return (score.modules_to_save["default"] if hasattr(score, "modules_to_save") else score).weight.detach()


def score_from(path: str) -> nn.Linear | None:
    """The frozen score head of the adapter at `path`; None if there is none."""
    weight_1D = saved_score(path)
    if weight_1D is None:
        return None
    head = nn.Linear(weight_1D.shape[1], 1, bias=False)
    head.weight = nn.Parameter(weight_1D, requires_grad=False)
    return head


def saved_score(path: str) -> Tensor | None:
    """The score head's weights, 1 x D, in the adapter at `path`; None if there is none."""
    return load_peft_weights(path, device="cpu").get(SCORE_WEIGHT)


def save_critic(backbone: Backbone, directory: Path) -> None:
    """The critic's adapter or backbone, and its value head beside it; of a head on the actor's trunk, that alone.

    The head stands in the place of the score, too, so that transformers and PEFT load the folder as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    head = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.value_head.state_dict().items()}
    save_file(head, directory / HEAD_FILE)
    name, model = backbone.adapters[CRITIC], backbone.model
    if backbone.adapters.get(ACTOR, "nobody") == name:
        return
    if name is None:
        model.save_pretrained(directory, state_dict={**model.state_dict(), "score.weight": head["weight"]})
        return
    with whole_ranks(model.peft_config[name]):
        config, state = copy.copy(model.peft_config[name]), get_peft_model_state_dict(model, adapter_name=name)
    config.task_type, config.inference_mode = "SEQ_CLS", True
    config.modules_to_save = sorted({*(getattr(config, "modules_to_save", None) or ()), "classifier", "score"})
    config.save_pretrained(directory)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    save_file({**state, SCORE_WEIGHT: head["weight"]}, directory / "adapter_model.safetensors", {"format": "pt"})
    if prompted(model):
        save_encoder(model, directory, name)
