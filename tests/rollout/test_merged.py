"""A LoRA merged for generation. float32: a merged weight rounds otherwise, 1e-4 on logits of order 10."""

import pytest
import torch
from torch.testing import assert_close

from align.peft.adapters import use_adapter
from align.rollout import merged as module
from align.rollout.merged import merged

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def state(model):
    return {n: (p.data_ptr(), p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}


def same(before, after):
    return all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(before.values(), after.values(), strict=True)
    )


@torch.no_grad()
def test_logits_are_the_adapters_and_all_comes_back_to_the_bit(lora_model):
    model = lora_model()
    before, logits = state(model), model(input_ids=IDS).logits
    with merged(model.get_base_model(), rows=2) as did:
        inside = model(input_ids=IDS).logits
    assert did and same(before, state(model))
    assert_close(inside, logits, rtol=0, atol=1e-4)
    assert not torch.equal(inside, logits)
    assert torch.equal(model(input_ids=IDS).logits, logits)


def test_an_exception_leaves_nothing_behind(lora_model):
    model = lora_model()
    before = state(model)
    with pytest.raises(RuntimeError, match="stop"), merged(model, rows=2):
        raise RuntimeError("stop")
    assert same(before, state(model))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"dtype": torch.bfloat16}, {"lora_bias": True}])
def test_what_merging_would_change_stays_apart(lora_model, options):
    with merged(lora_model(**options), rows=2) as did:
        assert not did


def test_a_switched_off_adapter_and_a_large_model_stay_apart(lora_model, monkeypatch):
    model = lora_model()
    with use_adapter(model, None), merged(model, rows=2) as did:
        assert not did
    monkeypatch.setattr(module, "ROW_BYTES", 1000)
    with merged(model, rows=2) as did:
        assert not did


def test_a_model_without_adapter_stays_as_it_is():
    with merged(torch.nn.Linear(2, 2), rows=2) as did:
        assert not did


def test_a_head_tied_to_the_embedding_stays_apart(lora_model):
    with merged(lora_model(target_modules=["q_proj", "lm_head"]), rows=2) as did:
        assert not did
