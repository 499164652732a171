"""Quantised bases: what is on disk, what is computed, what stands for it elsewhere. A random Llama, float32, CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from methods import method
from peft import PeftConfig, get_peft_model
from sharing import rollout, train
from torch import nn

from align.errors import AlignError
from align.peft.quantized import check_wanted, dequantized, is_quantized, on_quantized, plain_tensors, told_by
from align.peft.routes import route
from align.roles.alone import load_roles
from align.roles.folder import CAUSAL, SCORE, inspect
from align.roles.loading import for_task, load_frozen, load_merged, load_plain, save_quantized
from align.roles.start import start

IDS = torch.arange(3, 43).view(2, 20)


@pytest.fixture(scope="module")
def nf4(base, tmp_path_factory) -> str:
    return save_quantized(base, CAUSAL, "nf4", torch.float32, tmp_path_factory.mktemp("nf4"))


def begin(path: str, name: str, out: Path, head: str = CAUSAL, adapter: str = "auto", *settings: str):
    return start(
        str(path), key="sft", head=head, peft=method(name, *settings), adapter=adapter, out=out, dtype=torch.float32
    )


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_folder_says_what_it_is_and_is_a_quarter_of_the_layers(nf4, base):
    told = json.loads((Path(nf4) / "config.json").read_text())
    assert told_by(told) == "nf4" and told["quantization_config"]["bnb_4bit_use_double_quant"]
    small, whole = (sum(p.nbytes for p in load_plain(f, CAUSAL, torch.float32).parameters()) for f in (nf4, base))
    assert small < 0.75 * whole  # the embedding stays whole
    codes = [p for p in load_plain(nf4, CAUSAL, torch.float32).parameters() if p.dtype == torch.uint8]
    assert len(codes) == 14 and sum(p.numel() for p in codes) * 2 == 2 * (4 * 64 * 64 + 3 * 64 * 128)


def test_logits_and_gradients_are_those_of_the_dequantised_model_before_and_after_evaluation(nf4):
    """A pass in evaluation mode would pack the weights for AVX512-BF16; gradients are noise from then on."""
    found = []
    for plain in (
        load_plain(nf4, CAUSAL, torch.float32),
        dequantized(load_plain(nf4, CAUSAL, torch.float32), torch.float32),
    ):
        torch.manual_seed(0)
        model = get_peft_model(plain, for_task(method("qlora"), CAUSAL, nf4))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            first = model.eval()(IDS).logits
        found.append((first, gradients(model.train()), model.eval()(IDS).logits))
    (first, mine, again), (theirs_first, theirs, _) = found
    torch.testing.assert_close(first, theirs_first, rtol=0, atol=1e-5)
    assert torch.equal(first, again)
    assert mine.keys() == theirs.keys() and len(mine) == 28
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6)


def test_plain_tensors_are_a_plain_models(nf4, base):
    model = get_peft_model(load_plain(nf4, CAUSAL, torch.float32), for_task(method("qlora"), CAUSAL, nf4))
    tensors = dict(plain_tensors(model.get_base_model(), torch.float32))
    plain = load_plain(base, CAUSAL, torch.float32)
    assert tensors.keys() == {n for n, _ in plain.named_parameters(remove_duplicate=False)}
    for name, parameter in plain.named_parameters():
        off = float((tensors[name] - parameter).norm() / parameter.norm())
        assert 0.02 < off < 0.15 if "proj" in name else off == 0


def test_the_base_is_quantised_once_and_every_role_stands_on_it(base, tmp_path):
    roles, *_ = load_roles(base, method("qlora"), learning_rate=1e-2, critic="auto", out=str(tmp_path))
    assert len(roles.groups) == 1 and is_quantized(roles.actor.model)
    roles.save(tmp_path / "ppo")
    home = PeftConfig.from_pretrained(tmp_path / "ppo").base_model_name_or_path
    assert (
        home == str(tmp_path / "nf4")
        and PeftConfig.from_pretrained(tmp_path / "ppo" / "critic").base_model_name_or_path == home
    )


def test_the_same_method_goes_on_and_another_starts_on_the_merged_plain_weights(base, tmp_path):
    roles, *_ = load_roles(base, method("qlora"), learning_rate=1e-2, out=str(tmp_path))
    train(roles, who=("actor",))
    roles.save(tmp_path / "sft")
    policy = load_frozen(inspect(tmp_path / "sft", "path", CAUSAL))
    assert is_quantized(policy)
    with torch.no_grad():
        logits = policy(IDS).logits
        went_on = begin(tmp_path / "sft", "qlora", tmp_path / "a")
        assert "on its nf4 base" in went_on.description and went_on.base == str(tmp_path / "nf4")
        torch.testing.assert_close(went_on.model(IDS).logits, logits, rtol=0, atol=1e-5)
        other = begin(tmp_path / "sft", "dora", tmp_path / "b")
        assert not is_quantized(other.model) and "merged" in other.description
        torch.testing.assert_close(other.model(IDS).logits, logits, rtol=0, atol=1e-4)
        merged, _ = load_merged(inspect(tmp_path / "sft", "path", CAUSAL), CAUSAL, torch.float32)
        merged.save_pretrained(tmp_path / "merged")
        again = load_plain(str(tmp_path / "merged"), CAUSAL, torch.float32)
        torch.testing.assert_close(again(IDS).logits, logits, rtol=0, atol=1e-4)
    scored = begin(tmp_path / "sft", "qlora", tmp_path / "c", SCORE)
    assert "goes on" in scored.description and scored.model.score.modules_to_save["default"].weight.requires_grad


def test_lora_on_plain_weights_is_merged_and_then_quantised(base, tmp_path):
    roles, *_ = load_roles(base, method("lora"), learning_rate=1e-2)
    train(roles, who=("actor",))
    roles.save(tmp_path / "sft")
    begun = begin(tmp_path / "sft", "qlora", tmp_path / "rm")
    assert "its base is not nf4" in begun.description and begun.base == str(tmp_path / "rm" / "nf4")
    with pytest.raises(AlignError, match="its base is not nf4"):
        begin(tmp_path / "sft", "qlora", tmp_path / "rm2", CAUSAL, "continue")


def test_a_quantised_model_of_ones_own_is_taken_as_it_is(nf4, tmp_path):
    begun = begin(nf4, "lora", tmp_path)
    assert begun.base == nf4 and is_quantized(begun.model)
    assert route(begun.model.peft_config["default"]).mode == "adapter"
    other = begin(nf4, "dora", tmp_path)
    assert route(other.model.peft_config["default"]).mode == "generate"
    with pytest.raises(AlignError, match=r"the weights of .* are nf4 already\n  use sft.peft.quantize=nf4"):
        begin(nf4, "qlora", tmp_path, CAUSAL, "auto", "peft.quantize=fp4")
    with pytest.raises(AlignError, match="PEFT has no LOHA for a base of quantised weights"):
        begin(nf4, "loha", tmp_path)


@pytest.mark.parametrize(
    "name", ["houlsby", "dora", "ia3", "adalora", "oft", "boft", "vera", "miss", "ln_tuning", "prefix", "p_tuning"]
)
def test_other_methods_sit_on_it_too(base, name, tmp_path):
    peft = on_quantized(method(name), "nf4")
    roles, *_ = load_roles(base, peft, learning_rate=1e-2, out=str(tmp_path), steps=3)
    before = roles.score(rollout(), {"logp", "ref_logp"})
    assert float((before.logp_BT - before.ref_logp_BT).abs().max()) < 1e-6
    assert train(roles, who=("actor",))[0]["actor"] > 0
    assert float((roles.score(rollout(), {"logp"}).logp_BT - before.logp_BT).abs().max()) > 1e-4


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("lora", "nf5", r"sft.peft.quantize=nf5: use nf4 or fp4"),
        ("loha", "nf4", r"PEFT has no LOHA for a base of quantised weights\n  use peft@sft.peft=qlora"),
        ("pissa", "nf4", r"init_lora_weights=pissa needs a base in full precision"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_loads(name, kind, message):
    with pytest.raises(AlignError, match=message):
        check_wanted(on_quantized(method(name), kind), "sft.peft")
