"""Start of a role: a model or an adapter in a folder, made into the model that is to be trained.

All adapters of a run refer to one plain base wherever they can. An adapter of the same method and
settings is continued: a copy of it goes on, on the same base. Another one starts anew on the model
with the earlier adapter merged in float32, saved once as the new base.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from align.config.choices import ADAPTERS
from align.errors import AlignError
from align.peft.folder import bare_score
from align.peft.prompts import prompted
from align.peft.quantized import check_sits, is_quantized, on_quantized, plain_config, told_by, wanted
from align.peft.routes import changes_the_base, why_unmergeable
from align.peft.stateful import whole_ranks
from align.roles.folder import CAUSAL, SCORE, Folder
from align.roles.loading import (
    auto_class,
    for_task,
    load_merged,
    load_plain,
    look,
    save_quantized,
    settings_difference,
    take_weights,
)
from align.roles.tokenizer import copy_tokenizer


@dataclass
class Start:
    """A model ready for training, the base its adapter stands on, and in words what was done."""

    model: PreTrainedModel | PeftModel
    base: str
    description: str
    fresh: bool = False
    """The adapter is new: nothing has trained it yet."""
    quantized_from: str | None = None
    """The plain model behind `base`, where it was quantised now."""


def start(
    path: str,
    *,
    key: str,
    head: str,
    peft: PeftConfig | None,
    adapter: str,
    out: Path,
    dtype: torch.dtype,
    kinds: tuple[str, ...] = (CAUSAL, SCORE),
) -> Start:
    """Loads `path` for a role with a `causal` or `score` head, in full or with a PEFT method.

    `adapter` is auto, continue or new (see the module's docstring); `out` takes a merged base where one
    is needed. Frozen weights get `dtype`; weights that train stay float32. Raises AlignError where
    `continue` cannot hold.
    """
    folder = look(path, key, kinds)
    check_adapter(folder, key, peft, adapter)
    if peft is None:
        check_mergeable(folder, key, "all weights are to train")
        model, merged = load_merged(folder, head, torch.float32)
        return Start(model.requires_grad_(True), folder.base or folder.path, merged or f"{folder.path}, all weights")
    why = f"{key}.adapter=new"
    if folder.base and wanted(peft) not in (None, told_by(folder.config())):
        why = f"its base is not {wanted(peft)}"
    elif folder.base and adapter != "new":
        settings = for_task(peft, head, folder.base)
        if changes_the_base(settings):
            settings.init_lora_weights = True  # the part has been taken out of this base
        model = _adapted(load_plain(folder.base, head, dtype), settings, key)
        difference = settings_difference(model.peft_config["default"], PeftConfig.from_pretrained(folder.path))
        if not difference:
            take_weights(model, folder.path)
            how = told_by(folder.config())
            said = f"goes on with the adapter of {folder.path}{f', on its {how} base' if how else ''}"
            return Start(model, folder.base, said)
        why = difference
    if folder.base and adapter == "continue":
        raise AlignError(f"{key}.adapter=continue: the adapter of {folder.path} differs: {why}")
    home, said = folder.path, f"a new adapter on {folder.path}"
    if folder.base is not None:
        check_mergeable(folder, key, why)
        base = out / "base"
        merged, _ = load_merged(folder, folder.kind, torch.float32)
        merged.save_pretrained(base)
        copy_tokenizer(folder.path, base)
        home, said = str(base.resolve()), f"{said}, merged into {base} ({why})"
    quantized_from = None
    there = None if folder.base else told_by(folder.config())  # merged weights are plain
    if wanted(peft) and there not in (None, wanted(peft)):
        raise AlignError(
            f"{key}.peft.quantize={wanted(peft)}: the weights of {folder.path} are {there} already\n"
            f"  use {key}.peft.quantize={there}, or the plain model's folder"
        )
    if wanted(peft) and there is None:
        quantized_from = home
        home = save_quantized(home, folder.kind, wanted(peft), dtype, out / wanted(peft))
        copy_tokenizer(folder.path, out / wanted(peft))
        said = f"{said}; its weights as {wanted(peft)} are saved in {home}"
    model = _adapted(load_plain(home, head, dtype), for_task(peft, head, home), key)
    if changes_the_base(peft):
        home = _save_the_rest(model, out / "rest")
        copy_tokenizer(folder.path, out / "rest")
        said = f"{said}; what {peft.init_lora_weights} leaves of the base is saved in {out / 'rest'}"
    return Start(model, home, said, fresh=True, quantized_from=quantized_from)


def check_adapter(folder: Folder, key: str, peft: PeftConfig | None, adapter: str) -> None:
    """Refuse to continue where the folder or the settings have no adapter, and a method that the model cannot have."""
    if peft is not None and peft.peft_type == PeftType.TRAINABLE_TOKENS and folder.local and _tied(folder):
        raise AlignError(
            f"{key}.peft: the head of {folder.base or folder.path} is its embedding (tie_word_embeddings): TRL (1.16) "
            f"trains no single tokens of a head, PEFT (0.21) holds one set of them\n  use peft@{key}.peft=lora"
        )
    if adapter not in ADAPTERS:
        raise AlignError(f"{key}.adapter={adapter}: use auto, continue or new")
    if adapter == "continue" and peft is None:
        raise AlignError(f"{key}.adapter=continue needs an adapter\n  use peft@{key}.peft=lora, or {key}.adapter=auto")
    if adapter == "continue" and folder.base is None and folder.local:
        raise AlignError(
            f"{key}.adapter=continue: {folder.path} holds a whole model and no adapter\n  use {key}.adapter=auto"
        )
    check_fits(folder, key)
    if peft is not None:
        check_method(folder, peft, key)


def _tied(folder: Folder) -> bool:
    return bool(AutoConfig.from_pretrained(folder.base or folder.path).tie_word_embeddings)


def check_mergeable(folder: Folder, key: str, why: str) -> None:
    """Refuses to build on an adapter that no weights can hold; names the two ways out."""
    if folder.base is None:
        return
    earlier = PeftConfig.from_pretrained(folder.path)
    if reason := why_unmergeable(earlier):
        raise AlignError(
            f"{key}: the adapter of {folder.path} cannot be merged ({reason}), so nothing else can "
            f"start on it: {why}\n  go on with the same method and settings (peft@{key}.peft of that stage), "
            "or make that stage with a method that merges, such as lora"
        )


def _adapted(model: PreTrainedModel, peft: PeftConfig, key: str) -> PeftModel:
    if is_quantized(model):
        check_sits(on_quantized(peft, told_by(model.config.to_dict())), f"{key}.peft")
    try:
        adapted = get_peft_model(model, peft)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise AlignError(f"{key}.peft: {type(peft).__name__} does not go with this model: {reason}") from error
    if score := bare_score(adapted):
        score.requires_grad_(True)
    return adapted


def _save_the_rest(model: PeftModel, folder: Path) -> str:
    """Saves the base from which a new adapter has taken a part, and names it as the adapter's base; where it lies."""
    plain = model.get_base_model()
    apart = (".lora_", ".modules_to_save.", ".original_module.")
    rest = {n.replace(".base_layer", ""): t for n, t in plain.state_dict().items() if not any(w in n for w in apart)}
    plain.save_pretrained(folder, state_dict=rest)
    settings = model.peft_config["default"]
    settings.base_model_name_or_path, settings.init_lora_weights = str(folder.resolve()), True
    return str(folder.resolve())


SHOWN = 12
WEIGHTS = "adapter_model.safetensors"


def check_method(folder: Folder, peft: PeftConfig, key: str) -> None:
    """Raises AlignError where the method does not go with the model under `folder`, with the names that exist there."""
    model = weightless(folder)
    if model is None:
        return
    names = [name for name, _ in model.named_modules() if name]
    for setting in ("target_modules", "modules_to_save", "feedforward_modules"):
        check_names(getattr(peft, setting, None), names, model, f"{key}.peft.{setting}")
    check_layers(getattr(peft, "layers_to_transform", None), model, f"{key}.peft.layers_to_transform")
    for setting in ("rank_pattern", "alpha_pattern"):
        check_patterns(getattr(peft, setting, None), names, model, f"{key}.peft.{setting}")
    try:
        _tried(model, for_task(peft, folder.kind, folder.path))
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise AlignError(
            f"{key}.peft: {type(peft).__name__} does not go with this model: {reason}\n"
            f"  its linear layers: {linear_names(model)}"
        ) from error


def check_names(given: object, names: list[str], model: nn.Module, key: str) -> None:
    """Every module that is named in a list is one that exists; a word or a pattern is PEFT's to read."""
    if not given or isinstance(given, str):
        return
    for name in sorted(set(given) - {"score", "classifier", "all-linear"}):
        if not any(one == name or one.endswith(f".{name}") for one in names):
            near = difflib.get_close_matches(name, {one.rpartition(".")[2] for one in names}, n=1)
            nearest = f"nearest: {near[0]}; " if near else ""
            raise AlignError(
                f"{key}: {name} matches nothing in this model\n  {nearest}its linear layers: {linear_names(model)}"
            )


def check_layers(given: int | list[int] | None, model: nn.Module, key: str) -> None:
    """Raise AlignError for a layer that the model does not have; PEFT passes over one in silence."""
    layers = getattr(model.config, "num_hidden_layers", None)
    wanted = [given] if isinstance(given, int) else list(given or ())
    if layers is not None and (wrong := [one for one in wanted if not 0 <= one < layers]):
        raise AlignError(f"{key}={given}: the model has no layer {wrong[0]}\n  use layers from 0 to {layers - 1}")


def check_patterns(given: dict[str, Any] | None, names: list[str], model: nn.Module, key: str) -> None:
    """Raise AlignError for a pattern of modules that matches none; PEFT passes over one in silence."""
    for pattern in given or {}:
        found = re.compile(rf"(.*\.)?({pattern})$")  # as PEFT 0.21 reads it
        if not any(found.match(name) for name in names):
            raise AlignError(
                f"{key}.{pattern}: it matches nothing in this model\n  its linear layers: {linear_names(model)}"
            )


def check_fits(folder: Folder, key: str) -> None:
    """Raises AlignError where the adapter in `folder` was made on a base of another shape than the one it names."""
    file = Path(folder.path) / WEIGHTS
    if folder.base is None or not file.exists():
        return
    model, config = weightless(folder), PeftConfig.from_pretrained(folder.path)
    if model is None:
        return
    try:
        adapted = _tried(model, config)
    except ValueError:
        return
    if adapted is None or prompted(adapted):
        return
    with whole_ranks(config):
        here = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    with safe_open(str(file), "pt") as saved:
        for name in saved.keys():
            shape = tuple(saved.get_slice(name).get_shape())
            if name in here and here[name] != shape:
                raise AlignError(
                    f"{key}: the adapter in {folder.path} was made on another base than {folder.base}:\n"
                    f"  {name} is {shape} there and would be {here[name]} here\n"
                    "  use the right base into its adapter_config.json (base_model_name_or_path)"
                )


def weightless(folder: Folder) -> PreTrainedModel | None:
    """The model under `folder` on the meta device; None where its config alone does not say what it is."""
    if not folder.local:
        return None
    try:
        home = folder.base or folder.path
        config = plain_config(AutoConfig.from_pretrained(home))
        if folder.kind != CAUSAL:
            config.num_labels = 1
        with torch.device("meta"):
            return auto_class(home, folder.kind).from_config(config)
    except (ValueError, OSError):
        return None


def linear_names(model: nn.Module) -> str:
    """The last parts of the names of a model's linear layers, in their order."""
    found = [n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear) or hasattr(m, "nf")]
    return ", ".join(list(dict.fromkeys(found))[:SHOWN])


def _tried(model: PreTrainedModel, config: PeftConfig) -> PeftModel | None:
    """The model with the adapter; None for a method that computes with weights at once."""
    if changes_the_base(config):
        config.init_lora_weights = True
    config.base_model_name_or_path = None  # PEFT warns of another
    try:
        with torch.device("meta"):
            return get_peft_model(model, config)
    except RuntimeError:
        return None
