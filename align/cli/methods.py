"""`align plugins --explain METHOD`: what a PEFT method trains on a model, and what else follows from its kind."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from omegaconf import OmegaConf
from peft import PeftConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from align.build.plugs import peft
from align.cli.plugins import plug_file, plugs
from align.config.values import plug_of
from align.errors import AlignError
from align.library_variables import without_network
from align.peft.adapters import routes_rows
from align.peft.routes import (
    ADAPTER,
    CONVERTED,
    EMBEDDINGS,
    GENERATE,
    MERGED,
    REFUSED,
    changes_the_base,
    mergeable,
    route,
)
from align.peft.stateful import hooks_of, planned
from align.roles.folder import CAUSAL, inspect, is_hub_name
from align.stages.pretrain.spec import PretrainOptions

WAYS = {
    ADAPTER: "adapter: vLLM serves it as it is",
    CONVERTED: "converted: vLLM serves the LoRA that it equals",
    EMBEDDINGS: "embeddings: vLLM is handed the virtual tokens, which stand before each prompt",
    MERGED: "merged: vLLM gets all weights after each step",
    GENERATE: "generate: transformers writes the rollouts",
    REFUSED: "refused in PPO",
}
STEPS = 1000  # a plan for methods that need one


def explain(words: list[str]) -> str:
    """The text for a method's name, its settings (r=8) and, as model=FOLDER, the model; else the one pretrain makes."""
    names = sorted(name for group, name, *_ in plugs() if group == "peft" and name != "none")
    models = [word.partition("=")[2] for word in words if word.startswith("model=")]
    typed = [word for word in words if "=" not in word]
    if len(typed) != 1 or typed[0] not in names:
        near = difflib.get_close_matches(typed[0], names, n=1) if typed else []
        hint = f"nearest: {near[0]}" if near else f"one of: {', '.join(names)}"
        raise AlignError(f"align plugins --explain {' '.join(words)}: there is no such method\n  {hint}")
    shape = shape_of(models[0]) if models else made_by_pretrain()
    config = method(typed[0], [word for word in words if "=" in word and not word.startswith("model=")])
    trained, whole = count(config, shape)
    way = route(config)
    lines = {
        "parameters": f"{trained:,} of {whole:,} ({trained / whole:.2%}) of a {shape.model_type} model",
        "rollouts": WAYS[way.mode] + (f" ({way.why})" if way.why else ""),
        "one base": one_base(config),
        "next stage": "another method starts on it merged" if mergeable(config) else "the same method alone",
    }
    return "\n".join([f"peft={typed[0]}", *(f"  {name:11} {text}" for name, text in lines.items())])


def shape_of(model: str) -> PreTrainedConfig:
    """The config.json of a model's folder, or of a model on the hub. Raises AlignError where there is none."""
    if not Path(model).expanduser().exists() and (not is_hub_name(model) or without_network()):
        raise AlignError(f"model={model}: there is no such folder\n  use model=FOLDER, or a hub name such as org/name")
    folder = inspect(model, "model", CAUSAL)
    try:
        return AutoConfig.from_pretrained(folder.base or folder.path)
    except (OSError, ValueError) as error:
        raise AlignError(f"model={model}: {(str(error).splitlines() or ['?'])[0]}\n  use model=FOLDER") from error


def method(name: str, settings: list[str]) -> PeftConfig:
    """The config of a plug with settings such as r=8, planned for a run of some length."""
    node = OmegaConf.merge(OmegaConf.load(plug_file("peft", name)), OmegaConf.from_dotlist(settings))
    return planned(peft(plug_of(OmegaConf.to_container(node), "peft")), STEPS, "peft")


def one_base(config: PeftConfig) -> str:
    if hooks_of(config).one_trained:
        return "actor and reference; the critic brings its own"
    if config.is_prompt_learning:
        return "actor and reference, a pass each; the critic brings its own"
    if changes_the_base(config):
        return "actor and reference, in one pass; the critic brings its own"
    if routes_rows(config):
        return "actor, critic, reference and any reward models, in one pass"
    return "actor, critic, reference and any reward models, a pass each"


def count(config: PeftConfig, shape: PreTrainedConfig) -> tuple[int, int]:
    """Parameters that train, and those of the model; nothing is allocated where the method can do without."""
    config.task_type = "CAUSAL_LM"
    try:
        return _counted(config, shape, "meta")
    except RuntimeError:  # BOFT computes with its weights at once
        return _counted(config, shape, "cpu")


def _counted(config: PeftConfig, shape: PreTrainedConfig, device: str) -> tuple[int, int]:
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape)
        whole = model.num_parameters()
        return get_peft_model(model, config).get_nb_trainable_parameters()[0], whole


def made_by_pretrain() -> PreTrainedConfig:
    made = PretrainOptions()
    return LlamaConfig(
        vocab_size=made.vocab_size, hidden_size=made.hidden_size, num_hidden_layers=made.layers,
        num_attention_heads=made.heads, intermediate_size=made.intermediate_size, tie_word_embeddings=True,
    )  # fmt: skip
