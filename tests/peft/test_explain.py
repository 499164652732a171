"""`align plugins --explain METHOD`."""

import re

import pytest
from methods import METHODS, SETTINGS

from align.cli.main import main
from align.cli.methods import explain
from align.errors import AlignError


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_explained(name):
    text = explain([name, *SETTINGS.get(name, ())])
    assert text.startswith(f"peft={name}\n")
    assert re.search(r"parameters  [\d,]+ of 738,176 \(\d+\.\d\d%\) of a llama model\n  rollouts ", text)


def test_lora_on_a_model_of_ones_own(base):
    text = explain(["lora", f"model={base}"])
    assert "of a llama model" in text and "as it is" in text and "in one pass" in text


def test_settings_are_taken_as_they_are_typed():
    assert " 15,360 of" in explain(["lora", "r=2"]) and " 7,680 of" in explain(["lora", "r=1"])
    with pytest.raises(AlignError, match=r"peft.token_indices is not set\n  use peft.token_indices=VALUE"):
        explain(["trainable_tokens"])


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("vera", "vLLM serves the LoRA that it equals"),
        ("dora", "merged: vLLM gets all weights after each step (vLLM serves no LoRA with use_dora)"),
        ("prompt", "vLLM is handed the virtual tokens, which stand before each prompt"),
        ("prefix", "transformers writes the rollouts (vLLM is not handed what PREFIX_TUNING puts before a text)"),
    ],
)
def test_how_vllm_gets_it(name, way):
    assert way in explain([name])


def test_from_the_command_line(capsys):
    main(["plugins", "--explain", "p_tuning"])
    assert "embeddings: vLLM is handed the virtual tokens" in capsys.readouterr().out


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(AlignError, match="nearest: houlsby"):
        explain(["hulsby"])
    with pytest.raises(AlignError, match="one of: adalora"):
        explain([])
