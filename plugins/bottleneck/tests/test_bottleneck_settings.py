"""Settings of bottleneck adapters, their size, and what they cannot do."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bottleneck_adapters import BottleneckConfig, BottleneckLayer
from peft import LoraConfig, PeftType, get_peft_model, get_peft_model_state_dict
from tiny_models import CONFIGS, logits, settings, shake
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

each_kind = pytest.mark.parametrize("kind", list(CONFIGS))
each_placement = pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])


def test_settings_choose_layers_width_and_dropout(plain):
    model = get_peft_model(
        plain("llama"),
        BottleneckConfig(
            placement="houlsby", reduction_factor=8, dropout=0.5, layers_to_transform=[1], task_type="CAUSAL_LM"
        ),
    )
    layers = {n: m for n, m in model.named_modules() if isinstance(m, BottleneckLayer)}
    assert len(layers) == 2 and all("layers.1." in name for name in layers)
    assert {m.bottleneck_down["default"].out_features for m in layers.values()} == {4}
    layer, h = next(iter(layers.values())), torch.ones(1, 1, 32)
    nn.init.ones_(layer.bottleneck_up["default"].weight)
    assert torch.equal(layer.eval().bottleneck("default", h), layer.bottleneck("default", h))
    layer.train()
    assert len({float(layer.bottleneck("default", h)[0, 0, 0].detach()) for _ in range(8)}) > 1


def test_a_bf16_model_has_float32_adapters(plain, ids_BT):
    model = get_peft_model(plain("llama").bfloat16(), settings("houlsby"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model(ids_BT, labels=ids_BT).loss.backward()
    assert logits(model, ids_BT).dtype == torch.bfloat16


def test_a_deep_copy_is_a_model_of_its_own(plain, ids_BT):
    model = get_peft_model(plain("llama"), settings("houlsby"))
    shake(model, 1)
    twin = copy.deepcopy(model)
    before = logits(model, ids_BT)
    shake(twin, 2)
    assert torch.equal(logits(model, ids_BT), before) and not torch.equal(logits(twin, ids_BT), before)
    assert twin.get_model_status().peft_types == {"default": "BOTTLENECK"}


@each_placement
def test_counts_of_7_billion(placement):
    """bloomz-7b1 and Llama-3-8B on the meta device: 2·D·size + size + D a bottleneck, one or two a layer."""
    from transformers import BloomConfig, LlamaConfig

    size = 512 if placement == "parallel" else 64
    for config, layers in (
        (BloomConfig(hidden_size=4096, n_layer=30, n_head=32, vocab_size=8), 30),
        (LlamaConfig(hidden_size=4096, num_hidden_layers=32, vocab_size=8), 32),
    ):
        with torch.device("meta"):
            model = get_peft_model(AutoModelForCausalLM.from_config(config), settings(placement, bottleneck_size=size))
        bottleneck = 2 * 4096 * size + size + 4096
        expected = bottleneck * layers * (2 if placement == "houlsby" else 1)
        assert model.get_nb_trainable_parameters()[0] == expected


def test_a_plain_peft_script_needs_the_import_alone(plain, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = plain("llama")
    model.save_pretrained(base)
    get_peft_model(model, settings("pfeiffer")).save_pretrained(adapter)
    script = (
        "import sys, bottleneck_adapters, bottleneck_adapters as again\n"
        "from transformers import AutoModelForCausalLM\nfrom peft import PeftModel\n"
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(base)!r}), {str(adapter)!r})\n"
        "assert 'align' not in sys.modules\nprint(model.peft_type.value)\n"
    )
    folder = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stdout.strip() == "BOTTLENECK" and PeftType("BOTTLENECK") is PeftType.BOTTLENECK


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"placement": "beside"}, "houlsby, pfeiffer, parallel"),
        ({"non_linearity": "rellu"}, "rellu"),
        ({"bottleneck_size": 0}, "at least 1"),
        ({"reduction_factor": 0}, "above 0"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_values_that_make_no_adapter_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        BottleneckConfig(**options)


def test_what_it_cannot_do_is_refused(plain, ids_BT):
    model = get_peft_model(plain("llama"), settings("parallel")).eval()
    with pytest.raises(ValueError, match="cannot share a model"):
        model.add_adapter("other", settings("houlsby"))
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match="non-linearity"):
            merge()
    with pytest.raises(ValueError, match="no adapter of this name: nobody"):
        model(ids_BT, adapter_names=["default", "default", "nobody"])
    strange = OPTForCausalLM(
        OPTConfig(vocab_size=97, hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4)
    )
    with pytest.raises(ValueError, match="use target_modules"):
        get_peft_model(strange, settings("parallel"))
    with pytest.raises(ValueError, match="type"):
        get_peft_model(plain("llama"), settings("pfeiffer")).add_adapter("lora", LoraConfig())


def test_the_state_is_the_adapters_alone(plain):
    model = get_peft_model(plain("bloom"), settings("houlsby"))
    assert len(get_peft_model_state_dict(model)) == 2 * 2 * 4
    assert all("bottleneck_" in name for name in get_peft_model_state_dict(model))
