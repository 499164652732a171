"""Content of a model's folder, read from its json files: no torch, no loading."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from align.errors import AlignError

CAUSAL, SCORE, OTHER = "causal", "score", "other"
NAMES = {CAUSAL: "a language model", SCORE: "a reward model (one score a text)", OTHER: "some other model"}


@dataclass(frozen=True)
class Folder:
    """`kind` is causal, score or other; `base` is the model an adapter stands on, None for a whole model."""

    path: str
    kind: str
    base: str | None = None
    local: bool = True

    def config(self) -> dict:
        """config.json of the whole model under it ({} for a model on the hub)."""
        home = Path(self.base or self.path)
        return json.loads((home / "config.json").read_text(encoding="utf-8")) if (home / "config.json").exists() else {}

    def virtual_tokens(self) -> int:
        """Number of virtual tokens that its adapter puts before each prompt."""
        adapter = Path(self.path) / "adapter_config.json"
        return (
            (json.loads(adapter.read_text(encoding="utf-8")).get("num_virtual_tokens") or 0) if adapter.exists() else 0
        )


def inspect(path: str | Path, key: str, want: str) -> Folder:
    """Reads what `path` holds and refuses it, naming the config key, if it is not of the wanted kind.

    A path without folder on this disk is taken for a hub name if it looks like one (`org/name`).
    """
    path = Path(path).expanduser()
    if not path.exists():
        if is_hub_name(str(path)):
            return Folder(str(path), want, local=False)
        older = sorted(p for p in path.parent.parent.glob(f"*/{path.name}") if p.parent.name != "latest")
        if path.parent.name == "latest" and older:
            raise AlignError(f"{key}: there is no folder {path}\n  the newest run that has one: {key}={older[-1]}")
        raise AlignError(f"{key}: there is no folder {path}\n  use {key}=FOLDER, or a hub name such as org/name")
    found = _look(path, key)
    if found.kind != want:
        raise AlignError(
            f"{key}: {path} holds {NAMES[found.kind]}, but {key} needs {NAMES[want]}\n"
            f"  use the folder of {'an sft or pretrain' if want == CAUSAL else 'an rm'} stage, such as "
            f"{key}=runs/NAME/latest/{'sft' if want == CAUSAL else 'rm'}"
        )
    return found


OWNERLESS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
"""Causal models whose hub names have no owner."""


def is_hub_name(path: str) -> bool:
    return path in OWNERLESS or (path.count("/") == 1 and not path.startswith((".", "/", "~", "runs/")))


def _look(path: Path, key: str) -> Folder:
    if path.is_file():
        raise AlignError(f"{key}: {path} is a file, not the folder of a model\n  use {key}=FOLDER")
    adapter, whole = path / "adapter_config.json", path / "config.json"
    if closed := next((file for file in path.iterdir() if file.is_file() and not os.access(file, os.R_OK)), None):
        raise AlignError(f"{key}: this user cannot read {closed}\n  use chmod u+r {closed}, as its owner")
    if adapter.exists():
        config = _read(adapter, key)
        kind = {"CAUSAL_LM": CAUSAL, "SEQ_CLS": SCORE}.get(config.get("task_type"), OTHER)
        base = config.get("base_model_name_or_path")
        if not base:
            raise AlignError(f"{key}: {adapter} names no base model (base_model_name_or_path)\n  use it there")
        if not Path(base).exists() and not is_hub_name(base):
            raise AlignError(
                f"{key}: the adapter in {path} stands on {base}, which is not there\n"
                f"  put the base model back, or use its new place into {adapter} (base_model_name_or_path)"
            )
        return Folder(str(path.resolve()), kind, base=base)
    if whole.exists():
        config = _read(whole, key)
        architecture = (config.get("architectures") or ["?"])[0]
        kind = CAUSAL if architecture.endswith(("ForCausalLM", "LMHeadModel")) else OTHER
        if architecture.endswith("ForSequenceClassification"):
            kind = SCORE
            if (labels := len(config.get("id2label") or {0: ""})) != 1:
                raise AlignError(
                    f"{key}: {path} is a classifier of {labels} labels, and a reward model has one score\n"
                    "  use a model of one label (num_labels=1), or a function that calls the classifier: reward=fn"
                )
        return Folder(str(path.resolve()), kind)
    stages = [p.name for p in path.iterdir() if (p / "card.json").exists()]
    hint = f"\n  it is a run: use one of its stages, {key}={path}/{stages[0]}" if stages else ""
    raise AlignError(f"{key}: {path} holds no model (neither config.json nor adapter_config.json){hint}")


def _read(file: Path, key: str) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise AlignError(f"{key}: {file} is not valid JSON (line {error.lineno}): {error.msg}") from error


def base_home(path: str | Path) -> str:
    """Place of the whole model under `path`: itself, or the base that its adapter names."""
    adapter = Path(path) / "adapter_config.json"
    return json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter.exists() else str(path)


def tokenizer_home(path: str | Path) -> str:
    """Place of the tokenizer of a model: beside it, else beside the base of its adapter."""
    return str(path) if (Path(path) / "tokenizer_config.json").exists() else base_home(path)
