"""What a role starts from: a model or an adapter in a folder, made into what is to be trained.

All adapters of a run refer to one plain base wherever they can. An adapter of the same method and
settings is continued: a copy of it goes on, on the same base. Another one starts anew on the model
with the earlier adapter merged in float32, saved once as the new base.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from align.config.choices import ADAPTERS
from align.errors import AlignError
from align.peft.prompts import load_encoder, prompted
from align.peft.routes import changes_the_base, mergeable, route
from align.roles.folder import CAUSAL, SCORE, Folder, inspect
from align.roles.tokenizer import copy_tokenizer

TASK = {CAUSAL: "CAUSAL_LM", SCORE: "SEQ_CLS"}
NOT_SETTINGS = {
    "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
    "modules_to_save", "exclude_modules", "runtime_config", "peft_type",
    "total_step", "tinit", "tfinal", "init_lora_weights",
}  # fmt: skip


@dataclass
class Start:
    """A model ready for training, the base its adapter stands on, and in words what was done."""

    model: PreTrainedModel | PeftModel
    base: str
    said: str
    fresh: bool = False
    """The adapter is new: nothing has trained it yet."""


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
        model, said = load_merged(folder, head, torch.float32)
        return Start(model.requires_grad_(True), folder.base or folder.path, said or f"{folder.path}, all weights")
    why = f"{key}.adapter=new"
    if folder.base and adapter != "new":
        settings = for_task(peft, head, folder.base)
        if changes_the_base(settings):
            settings.init_lora_weights = True  # the part has been taken out of this base
        model = _adapted(load_plain(folder.base, head, dtype), settings, key)
        difference = settings_difference(model.peft_config["default"], PeftConfig.from_pretrained(folder.path))
        if not difference:
            take_weights(model, folder.path)
            return Start(model, folder.base, f"goes on with the adapter of {folder.path}")
        why = difference
        if adapter == "continue":
            raise AlignError(f"{key}.adapter=continue: the adapter of {folder.path} differs: {difference}")
    home, said = folder.path, f"a new adapter on {folder.path}"
    if folder.base is not None:
        check_mergeable(folder, key, why)
        base = out / "base"
        merged, _ = load_merged(folder, folder.kind, torch.float32)
        merged.save_pretrained(base)
        copy_tokenizer(folder.path, base)
        home, said = str(base.resolve()), f"{said}, merged into {base} ({why})"
    model = _adapted(load_plain(home, head, dtype), for_task(peft, head, home), key)
    if changes_the_base(peft):
        home = _save_the_rest(model, out / "rest")
        copy_tokenizer(folder.path, out / "rest")
        said = f"{said}; what {peft.init_lora_weights} leaves of the base is saved in {out / 'rest'}"
    return Start(model, home, said, fresh=True)


def check_adapter(folder: Folder, key: str, peft: PeftConfig | None, adapter: str) -> None:
    """Refuses to continue where there is no adapter, or none is asked for."""
    if adapter not in ADAPTERS:
        raise AlignError(f"{key}.adapter={adapter}: write auto, continue or new")
    if adapter == "continue" and peft is None:
        raise AlignError(
            f"{key}.adapter=continue needs an adapter\n  write peft@{key}.peft=lora, or {key}.adapter=auto"
        )
    if adapter == "continue" and folder.base is None and folder.local:
        raise AlignError(
            f"{key}.adapter=continue: {folder.path} holds a whole model and no adapter\n  write {key}.adapter=auto"
        )


def check_mergeable(folder: Folder, key: str, why: str) -> None:
    """Refuses to build on an adapter that no weights can hold; names the two ways out."""
    if folder.base is None:
        return
    earlier = PeftConfig.from_pretrained(folder.path)
    if not mergeable(earlier):
        raise AlignError(
            f"{key}: the adapter of {folder.path} cannot be merged ({route(earlier).why}), so nothing else can "
            f"start on it: {why}\n  go on with the same method and settings (peft@{key}.peft of that stage), "
            "or make that stage with a method that merges, such as lora"
        )


def look(path: str, key: str, kinds: tuple[str, ...]) -> Folder:
    """The folder at `path`, which must be of one of the kinds."""
    for kind in kinds[:-1]:
        try:
            return inspect(path, f"{key}.path", kind)
        except AlignError:
            continue
    return inspect(path, f"{key}.path", kinds[-1])


def load_plain(path: str, head: str, dtype: torch.dtype) -> PreTrainedModel:
    """The whole model at `path` with the wanted head, in evaluation mode and with no dropout; frozen."""
    options: dict[str, Any] = {"dtype": dtype, **_no_dropout(path)}
    if head == CAUSAL:
        model = AutoModelForCausalLM.from_pretrained(path, **options)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **options)
    return model.requires_grad_(False).eval()


def load_merged(folder: Folder, head: str, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    """The model of a folder with its adapter, if it has one, merged in; and in words what was done."""
    model = load_plain(folder.base or folder.path, head, dtype)
    if folder.base is None:
        return model, ""
    if head == folder.kind:
        wrapped = PeftModel.from_pretrained(model, folder.path)
    else:
        wrapped = get_peft_model(model, for_task(PeftConfig.from_pretrained(folder.path), head, folder.base))
        take_weights(wrapped, folder.path)
    return wrapped.merge_and_unload(safe_merge=True).requires_grad_(False), f"{folder.path}, its adapter merged"


def load_frozen(folder: Folder) -> PreTrainedModel | PeftModel:
    """What a folder holds, in float32, to compute alone: an adapter is merged if it can be, else sits on its base."""
    if folder.base and not mergeable(PeftConfig.from_pretrained(folder.path)):
        model = PeftModel.from_pretrained(load_plain(folder.base, folder.kind, torch.float32), folder.path)
        return model.requires_grad_(False).eval()
    return load_merged(folder, folder.kind, torch.float32)[0]


def settings_difference(mine: PeftConfig, theirs: PeftConfig) -> str:
    """Where two PEFT configurations of resolved targets differ, in words; '' where they agree."""
    if mine.peft_type != theirs.peft_type:
        return f"{theirs.peft_type.value} there, {mine.peft_type.value} asked for"
    ours, saved = (_beside_a_head(getattr(config, "modules_to_save", None)) for config in (mine, theirs))
    if ours != saved:
        return f"modules_to_save is {saved} there, {ours} asked for"
    one, other = mine.to_dict(), theirs.to_dict()
    for name in sorted(one.keys() - NOT_SETTINGS):
        ours, saved = (sorted(v) if isinstance(v, set | list) else v for v in (one[name], other.get(name)))
        if ours != saved:
            return f"{name} is {saved} there, {ours} asked for"
    return ""


def _adapted(model: PreTrainedModel, peft: PeftConfig, key: str) -> PeftModel:
    try:
        return get_peft_model(model, peft)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise AlignError(f"{key}.peft: {type(peft).__name__} does not go with this model: {reason}") from error


def _save_the_rest(model: PeftModel, folder: Path) -> str:
    """Saves the base from which a new adapter has taken a part, and names it as the adapter's base; where it lies."""
    plain = model.get_base_model()
    apart = (".lora_", ".modules_to_save.", ".original_module.")
    rest = {n.replace(".base_layer", ""): t for n, t in plain.state_dict().items() if not any(w in n for w in apart)}
    plain.save_pretrained(folder, state_dict=rest)
    settings = model.peft_config["default"]
    settings.base_model_name_or_path, settings.init_lora_weights = str(folder.resolve()), True
    return str(folder.resolve())


def for_task(peft: PeftConfig, head: str, base: str) -> PeftConfig:
    config = copy.deepcopy(peft)
    config.task_type = TASK[head]
    config.base_model_name_or_path = base
    config.inference_mode = False
    if head == CAUSAL and getattr(config, "modules_to_save", None):
        config.modules_to_save = _beside_a_head(config.modules_to_save) or None
    return config


def _beside_a_head(modules: Iterable[str] | None) -> list[str]:
    """The modules that train in full, without a score head, which comes and goes with the task."""
    return sorted(set(modules or ()) - {"score", "classifier"})


def take_weights(model: PeftModel, path: str, name: str = "default") -> None:
    """Puts the adapter saved at `path` into adapter `name` of `model`, whose head may be another and is kept."""
    if prompted(model):
        load_encoder(model, path, name)
        _take_score(model, path, name)
        return
    mine, theirs = get_peft_model_state_dict(model, adapter_name=name), load_peft_weights(path, device="cpu")
    heads = {key for key in mine if key.endswith("score.weight")}
    missing = mine.keys() - theirs.keys() - heads
    if missing:
        raise AlignError(f"the adapter of {path} lacks weights, such as {sorted(missing)[0]}")
    weights = {key: theirs.get(key, mine[key]) for key in mine}
    set_peft_model_state_dict(model, weights, adapter_name=name)


def _take_score(model: PeftModel, path: str, name: str) -> None:
    """The score head of the adapter at `path`, where both have one."""
    score = getattr(model.get_base_model(), "score", None)
    saved = [tensor for key, tensor in load_peft_weights(path, device="cpu").items() if key.endswith("score.weight")]
    if saved and hasattr(score, "modules_to_save"):
        with torch.no_grad():
            score.modules_to_save[name].weight.copy_(saved[0])


def _no_dropout(path: str) -> dict[str, float]:
    """Every dropout rate of a model's config set to 0: PPO compares passes that must be the same function."""
    config = AutoConfig.from_pretrained(path).to_dict()
    rates = [name for name, value in config.items() if isinstance(value, float) and _is_dropout(name)]
    return {name: 0.0 for name in rates if config[name] > 0}


def _is_dropout(name: str) -> bool:
    return "dropout" in name or name.endswith("pdrop")
