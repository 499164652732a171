"""Loads folders that stages left with transformers and PEFT alone: python tests/loading.py FOLDER:KIND …"""

import json
import sys
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


def load(folder: Path, kind: str) -> None:
    """A whole model or an adapter on its base; `kind` is causal or score."""
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    labels = {} if kind == "causal" else {"num_labels": 1}
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        base = json.loads(adapter.read_text())["base_model_name_or_path"]
        model = PeftModel.from_pretrained(auto.from_pretrained(base, **labels), folder)
    else:
        model = auto.from_pretrained(folder, **labels)
    words = AutoTokenizer.from_pretrained(folder)("When do you open?", return_tensors="pt")
    shape = model(input_ids=words.input_ids).logits.shape
    assert len(shape) == (3 if kind == "causal" else 2), shape


if __name__ == "__main__":
    for word in sys.argv[1:]:
        load(Path(word.rpartition(":")[0]), word.rpartition(":")[2])
    assert "align" not in sys.modules
