"""Linear layers by oneDNN against torch's. float32 sums in another order: 1e-5 on numbers of order 1; a model's
loss to 1e-6, which is what cpu_linear promises."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from align.engine import linear
from align.engine.linear import OneDNNLinear, choose_linear, matmul_of, use_fast_linears
from align.errors import AlignError

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
pytestmark = pytest.mark.skipif(not linear.has_onednn(), reason="this torch has no oneDNN linear")

SHAPES = {
    "rows": lambda: torch.randn(5, 64),
    "batch": lambda: torch.randn(2, 3, 64),
    "one": lambda: torch.randn(64),
    "transposed": lambda: torch.randn(3, 2, 64).transpose(0, 1),
    "strided": lambda: torch.randn(5, 128)[:, ::2],
    "expanded": lambda: torch.randn(1, 1, 64).expand(4, 3, 64),
    "none": lambda: torch.randn(0, 64),
    "no time": lambda: torch.randn(2, 0, 64),
}


def layers(bias=True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(64, 96, bias)
    fast = copy.deepcopy(plain)
    assert use_fast_linears(fast) == 1
    return plain, fast


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_and_gradients_are_those_of_nn_linear(shape, bias):
    plain, fast = layers(bias)
    x = SHAPES[shape]()
    outputs, gradients = [], []
    for layer in (plain, fast):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = layer(leaf if shape != "expanded" else leaf[:1, :1].expand(4, 3, 64))
        (y * torch.linspace(-1, 1, 96)).sum().backward()
        outputs.append(y)
        gradients.append([leaf.grad, *(p.grad for p in layer.parameters())])
    assert_close(outputs[1], outputs[0], **TOLERANCE)
    for mine, other in zip(gradients[1], gradients[0], strict=True):
        assert_close(mine, other, **TOLERANCE)


def test_an_expanded_gradient_is_taken():
    plain, fast = layers()
    x = torch.randn(5, 64)
    for layer in (plain, fast):
        layer(x).sum().backward()
    assert_close(fast.weight.grad, plain.weight.grad, **TOLERANCE)


def test_a_frozen_weight_keeps_no_input_and_gets_no_gradient():
    _, fast = layers()
    fast.requires_grad_(False)
    x = torch.randn(5, 64, requires_grad=True)
    y = fast(x)
    assert y.grad_fn.saved_tensors[0] is None
    y.sum().backward()
    assert fast.weight.grad is None and x.grad is not None


def test_other_dtypes_and_autocast_go_torchs_way():
    plain, fast = layers()
    x = torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), plain(x)) and fast(x).dtype == torch.bfloat16
    assert torch.equal(fast.bfloat16()(x.bfloat16()), plain.bfloat16()(x.bfloat16()))


def test_only_plain_wide_float32_layers_are_taken():
    class Other(nn.Linear):
        pass

    kept = [Other(64, 64), nn.Linear(64, 64).bfloat16(), nn.Linear(64, 16), nn.Linear(16, 64), nn.Conv1d(64, 64, 1)]
    assert use_fast_linears(nn.ModuleList(kept)) == 0
    assert not any(isinstance(module, OneDNNLinear) for module in kept)


def loss_of(model, ids):
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_has_the_same_loss_gradients_copies_and_folder(base, tmp_path, lora):
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    if lora:
        torch.manual_seed(0)
        plain = get_peft_model(plain, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)).eval()
    fast = copy.deepcopy(plain)
    assert use_fast_linears(fast) == 15
    fast = copy.deepcopy(fast)
    assert sum(isinstance(module, OneDNNLinear) for module in fast.modules()) == 15
    ids = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    (loss, gradients), (expected, others) = loss_of(fast, ids), loss_of(plain, ids)
    assert_close(loss, expected, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        assert_close(gradient, others[name], rtol=1e-4, atol=1e-5)
    fast.save_pretrained(tmp_path)
    if not lora:
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), plain.parameters(), strict=True))
        assert not any(isinstance(module, OneDNNLinear) for module in again.modules())


def test_a_lora_added_afterwards_wraps_the_fast_layer(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    use_fast_linears(model)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert isinstance(layer.base_layer, OneDNNLinear)
    model.merge_adapter()
    model.unmerge_adapter()
    assert isinstance(layer.base_layer, OneDNNLinear)


@pytest.mark.parametrize("times, kind", [((1.0, 2.0), "onednn"), ((1.0, 1.0), "torch")])
def test_auto_takes_what_was_faster_and_says_so(base, monkeypatch, times, kind):
    model = AutoModelForCausalLM.from_pretrained(base)
    fast, slow = times
    took = lambda matmul, *rest: fast if matmul is linear.onednn_matmul else slow
    monkeypatch.setattr(linear, "_seconds", took)
    chosen, words = choose_linear(model, "auto")
    assert chosen == kind
    assert words == f"linear layers by {kind}: oneDNN takes {fast / slow:.2f} of torch's time here"
    assert not any(isinstance(module, OneDNNLinear) for module in model.modules())


def test_auto_really_measures(base):
    chosen, words = choose_linear(AutoModelForCausalLM.from_pretrained(base), "auto")
    assert chosen in ("torch", "onednn") and "of torch's time" in words


def test_bfloat16_models_stay_with_torch(base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    assert choose_linear(model, "auto") == ("torch", "linear layers by torch")


def test_an_unknown_kind_and_a_missing_kernel_are_refused(base, monkeypatch):
    model = nn.Linear(64, 64)
    with pytest.raises(AlignError, match="cpu_linear='mkl': use one of auto, torch, onednn"):
        choose_linear(model, "mkl")
    monkeypatch.setattr(linear, "has_onednn", lambda: False)
    with pytest.raises(AlignError, match=r"cpu_linear=onednn: torch .* has no such kernel"):
        choose_linear(model, "onednn")
    assert choose_linear(model, "auto")[0] == "torch"


def test_a_heads_matmul_is_its_own_kernel():
    plain, fast = layers()
    x = torch.randn(5, 64)
    assert torch.equal(matmul_of(plain)(x, plain.weight), x @ plain.weight.t())
    assert torch.equal(matmul_of(fast)(x, fast.weight), linear.onednn_matmul(x, fast.weight))
    assert matmul_of(fast)(x[:0], fast.weight).shape == (0, 96)
