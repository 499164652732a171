"""Bottleneck adapters do all that PEFT asks of a method, on five kinds of model, in float32 on CPU.

Tolerance 1e-5 for logits computed another way; equal bit for bit where nothing else is computed.
"""

from __future__ import annotations

import json

import pytest
import torch
from bottleneck_adapters import BottleneckLayer
from peft import PeftModel, get_peft_model
from tiny_models import CONFIGS, logits, settings, shake
from torch import Tensor, nn

each_kind = pytest.mark.parametrize("kind", list(CONFIGS))
each_placement = pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])


@each_kind
@each_placement
def test_starts_as_the_model_and_trains_its_own_parameters_alone(plain, ids_BT, kind, placement):
    before = logits(plain(kind), ids_BT)
    model = get_peft_model(plain(kind), settings(placement))
    assert torch.equal(logits(model, ids_BT), before)
    base = {n: p.clone() for n, p in model.named_parameters() if "bottleneck" not in n}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(4):
        loss = model(ids_BT, labels=ids_BT).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        grads = {n: p.grad is not None for n, p in model.named_parameters()}
        assert grads == {n: "bottleneck_" in n for n in grads}
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)


@each_placement
def test_computes_what_the_papers_draw(plain, ids_BT, placement):
    """On a Llama, against hooks that add the same beside the model's own modules."""
    model = get_peft_model(plain("llama"), settings(placement, scaling=1.5, non_linearity="gelu"))
    shake(model, 1)
    mine = plain("llama")

    def formula(layer: BottleneckLayer, h: Tensor) -> Tensor:
        down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
        return 1.5 * (nn.functional.gelu(h @ down.weight.T + down.bias) @ up.weight.T + up.bias)

    for theirs, layer in zip(model.get_base_model().model.layers, mine.model.layers, strict=True):
        if placement == "parallel":
            at = [(theirs.mlp, layer.mlp)]
        else:
            at = [(theirs.mlp.down_proj, layer.mlp.down_proj)]
        if placement == "houlsby":
            at.append((theirs.self_attn.o_proj, layer.self_attn.o_proj))
        for wrapped, module in at:
            module.register_forward_hook(
                lambda _, args, y, a=wrapped: y + formula(a, args[0] if placement == "parallel" else y)
            )
    torch.testing.assert_close(logits(model, ids_BT), logits(mine, ids_BT), atol=1e-5, rtol=0)
    assert sum(p.requires_grad for p in model.parameters()) == (16 if placement == "houlsby" else 8)


@each_kind
@each_placement
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_saves_and_loads(plain, ids_BT, kind, placement, task, tmp_path):
    model = get_peft_model(plain(kind, task), settings(placement, task_type=task))
    shake(model, 1)
    if task == "SEQ_CLS":
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if "score.modules_to_save" in n).normal_()
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(plain(kind, task), tmp_path).eval()
    assert torch.equal(logits(again, ids_BT), logits(model, ids_BT))
    assert not torch.equal(logits(again, ids_BT), logits(plain(kind, task), ids_BT))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"


@each_kind
@each_placement
def test_several_adapters_row_by_row(plain, ids_BT, kind, placement, tmp_path):
    model = get_peft_model(plain(kind), settings(placement)).eval()
    shake(model, 1)
    model.add_adapter("other", settings(placement, bottleneck_size=7))
    shake(model, 2, "other")
    model.eval()
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".other." in n)
    alone = {"default": logits(model, ids_BT)}
    model.set_adapter("other")
    alone["other"] = logits(model, ids_BT)
    with model.disable_adapter():
        alone["__base__"] = logits(model, ids_BT)
    assert torch.equal(alone["__base__"], logits(plain(kind), ids_BT))
    names = ["other", "__base__", "default"]
    mixed = logits(model, ids_BT, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], atol=1e-5, rtol=0)
    assert torch.equal(logits(model, ids_BT), alone["other"])  # nothing is left of the routing
    model.delete_adapter("other")
    assert model.active_adapters == ["default"] and torch.equal(logits(model, ids_BT), alone["default"])
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "third")
    model.set_adapter("third")
    assert torch.equal(logits(model, ids_BT), alone["default"])


@each_kind
@each_placement
def test_unload_gives_the_model_back(plain, ids_BT, kind, placement):
    model = get_peft_model(plain(kind), settings(placement))
    shake(model, 1)
    bare = model.unload()
    assert {n: p.shape for n, p in bare.named_parameters()} == {n: p.shape for n, p in plain(kind).named_parameters()}
    assert torch.equal(logits(bare, ids_BT), logits(plain(kind), ids_BT))


@each_kind
@each_placement
def test_generates_with_a_cache_as_without(plain, ids_BT, kind, placement):
    model = get_peft_model(plain(kind), settings(placement)).eval()
    shake(model, 1)
    fast, slow = (
        model.generate(input_ids=ids_BT, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)
    )
    assert torch.equal(fast, slow)


@each_placement
def test_gradients_row_by_row_and_checkpointed_are_those_of_passes_apart(plain, ids_BT, placement):
    found = []
    for checkpointed in (False, True):
        model = get_peft_model(plain("llama"), settings(placement))
        model.add_adapter("other", settings(placement))
        shake(model, 1), shake(model, 2, "other")
        model.set_requires_grad(["default", "other"])
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
            model.base_model.training = False
        else:
            model.eval()
        with model.base_model._enable_peft_forward_hooks(adapter_names=["default", "other", "default"]):
            model.get_base_model()(ids_BT).logits.square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    apart = get_peft_model(plain("llama"), settings(placement)).eval()
    apart.add_adapter("other", settings(placement))
    shake(apart, 1), shake(apart, 2, "other")
    total = 3 * ids_BT.shape[1] * 97
    for name, rows in (("default", [0, 2]), ("other", [1])):
        apart.set_adapter(name)
        (apart(ids_BT[rows]).logits.square().sum() / total).backward()
        for key, grad in ((n, p.grad) for n, p in apart.named_parameters() if f".{name}." in n):
            for grads in found:
                torch.testing.assert_close(grads[key], grad, atol=1e-5, rtol=1e-4)
