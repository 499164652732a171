"""README.md of a model's folder: origin, how to load it without align, figures. PEFT's own is an empty form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from align.secrets import hide

CLASSES = {"SEQ_CLS": "AutoModelForSequenceClassification", "CAUSAL_LM": "AutoModelForCausalLM"}
PAD = "model.config.pad_token_id = tokenizer.pad_token_id  # its score stands at the last token that is no padding\n"


def write_model_card(folder: Path, card: dict[str, Any]) -> None:
    """Write README.md into a stage's folder that holds a model or an adapter; `card` is the stage's card.json."""
    adapter, whole = folder / "adapter_config.json", folder / "config.json"
    if not (adapter.exists() or whole.exists()):
        return
    file = folder / "README.md"
    earlier = ModelCard.load(file).data.to_dict() if file.exists() else {}
    data = {"library_name": "transformers", **earlier}
    data["tags"] = sorted({*data.get("tags", []), "align", str(card["stage"])})
    lines = "\n".join(f"{name}: {json.dumps(value)}" for name, value in data.items())
    load = _adapter(folder, adapter) if adapter.exists() else _whole(folder, whole)
    start = card.get("start")
    began = "".join(f"- {one}\n" for one in ([start] if isinstance(start, str) else start or []))
    text = (
        f"---\n{lines}\n---\n\n# {card['stage']}\n\nMade by the stage `{card['stage']}` of align "
        f"{card['versions']['align']}.\n\n{began}\n## Load\n```python\n{load}```\n\n## Figures\n{_figures(card)}\n"
        "`config.yaml` has the settings, `metrics.jsonl` the curves, `card.json` all facts.\n"
    )
    file.write_text(hide(text), encoding="utf-8")


def _adapter(folder: Path, file: Path) -> str:
    config = json.loads(file.read_text(encoding="utf-8"))
    cls = CLASSES.get(config.get("task_type"), "AutoModel")
    score = cls == CLASSES["SEQ_CLS"]
    home = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]].__module__.partition(".")[0]
    method = "" if home == "peft" else f"import {home}  # adds the method to PEFT\n"
    labels, base = ", num_labels=1" if score else "", config["base_model_name_or_path"]
    return (
        f"{method}from peft import PeftModel\n{_imports(cls, base)}\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})\n"
        f"model = {cls}.from_pretrained({base!r}{labels})\n"
        f"{PAD if score else ''}model = PeftModel.from_pretrained(model, {str(folder)!r})\n"
    )


def _whole(folder: Path, config: Path) -> str:
    name = (json.loads(config.read_text(encoding="utf-8")).get("architectures") or [""])[0]
    cls = CLASSES["SEQ_CLS" if name.endswith("ForSequenceClassification") else "CAUSAL_LM"]
    return (
        f"{_imports(cls, folder)}\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})\nmodel = {cls}.from_pretrained({str(folder)!r})\n"
    )


def _imports(cls: str, home: str | Path) -> str:
    """Lines that bring in the class and the tokenizer's; of align's own making where transformers has no score head."""
    plain = f"from transformers import AutoTokenizer, {cls}\n"
    config = Path(home) / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8"))["model_type"] if config.exists() else None
    if kind is None or cls != CLASSES["SEQ_CLS"] or kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return plain
    return (
        f'from align.roles.loading import auto_class\n{plain}\nauto_class({str(home)!r}, "score")  # adds the class\n'
    )


def _figures(card: dict[str, Any]) -> str:
    found = {name: value for name, value in card.items() if type(value) in (int, float)}
    found |= {name: value for name, value in card.get("last", {}).items() if name.startswith("objective/")}
    return "| | |\n| --- | --- |\n" + "".join(f"| {name} | {_shown(value)} |\n" for name, value in found.items())


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
