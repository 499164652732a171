"""Fused LoRA layers against PEFT's. float32 sums in another order: 1e-5 on numbers of order 1."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from align.engine.linear import use_fast_linears
from align.engine.lora import FastLora, _Lora, use_fast_loras
from align.peft.adapters import routed, use_adapter

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
IDS = torch.randint(3, 300, (4, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch):
    """How often the fused function ran."""
    seen, apply = [], _Lora.apply
    monkeypatch.setattr(_Lora, "apply", lambda *args: seen.append(1) or apply(*args))
    return seen


def pair(lora_model, second=False, **options):
    """PEFT's model and a fused copy of it."""
    plain = lora_model(**options)
    if second:
        plain.add_adapter("other", copy.deepcopy(plain.peft_config["default"]))
        torch.manual_seed(1)
        for name, parameter in plain.named_parameters():
            if ".other." in name:
                nn.init.normal_(parameter, std=0.1)
                parameter.requires_grad_()
    fast = copy.deepcopy(plain.eval())
    assert use_fast_loras(fast) == 14
    return plain, fast.eval()


def run(model):
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=IDS).logits
    (logits * torch.linspace(-1, 1, logits.shape[-1])).sum().mul(0.01).backward()
    return logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(ours, theirs):
    assert_close(ours[0], theirs[0], **TOLERANCE)
    assert ours[1].keys() == theirs[1].keys() and ours[1]
    for name, gradient in ours[1].items():
        assert_close(gradient, theirs[1][name], **TOLERANCE)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("options", [{}, {"r": 16, "lora_alpha": 4, "use_rslora": True}, {"lora_dropout": 0.5}])
def test_logits_and_gradients_are_those_of_peft(lora_model, calls, onednn, options):
    plain, fast = pair(lora_model, **options)
    if onednn:
        use_fast_linears(fast)
    compare(run(fast), run(plain))
    assert len(calls) == 14


def test_each_rows_own_adapter_is_taken(lora_model, calls):
    plain, fast = pair(lora_model, second=True)
    found = []
    for model in (fast, plain):
        with routed(model, ["default", "default", None, "other"]):
            found.append(run(model))
    compare(*found)
    assert len(calls) == 14


@pytest.mark.parametrize("name", ["default", "other"])
def test_a_switched_adapter_is_taken(lora_model, calls, name):
    plain, fast = pair(lora_model, second=True)
    with use_adapter(fast, name), use_adapter(plain, name):
        compare(run(fast), run(plain))
    assert len(calls) == 14


def test_the_base_alone_is_pefts_to_the_bit(lora_model, calls):
    plain, fast = pair(lora_model)
    with torch.no_grad(), use_adapter(fast, None), use_adapter(plain, None):
        assert torch.equal(fast(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    assert not calls


def test_a_frozen_adapter_keeps_no_input(lora_model):
    _, fast = pair(lora_model)
    fast.requires_grad_(False)
    layer = fast.get_base_model().model.layers[0].self_attn.q_proj
    y = layer(torch.randn(2, 3, 64, requires_grad=True))
    assert y.grad_fn.saved_tensors[0] is None
    y.sum().backward()


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_go_pefts_way(lora_model, calls, options):
    plain, fast = pair(lora_model, **options)
    compare(run(fast), run(plain))
    assert not calls


def test_dropout_while_training_and_autocast_go_pefts_way(lora_model, calls):
    _, fast = pair(lora_model, lora_dropout=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        fast(input_ids=IDS)
    fast.train()
    fast(input_ids=IDS)
    assert not calls


def test_merging_copies_and_folders_are_pefts(lora_model, tmp_path):
    plain, fast = pair(lora_model)
    before = fast(input_ids=IDS).logits
    fast.merge_adapter()
    assert_close(fast(input_ids=IDS).logits, before, **TOLERANCE)
    fast.unmerge_adapter()
    fast.save_pretrained(tmp_path / "fast")
    plain.save_pretrained(tmp_path / "plain")
    assert {f.name for f in (tmp_path / "fast").iterdir()} == {f.name for f in (tmp_path / "plain").iterdir()}
    assert sum(isinstance(m, FastLora) for m in copy.deepcopy(fast).modules()) == 14
