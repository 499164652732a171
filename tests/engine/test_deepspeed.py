"""DeepSpeed's five choices train a model as plain torch does. One process, float32 on CPU.

Tolerance of parameters: a thousandth of the learning rate times the number of steps. AdamW moves a
parameter by about the learning rate a step whatever the gradient's size, so that is the scale of any
difference; where a gradient is near nothing, its last bits decide. Seen: a ten-thousandth at stage 3.
"""

from __future__ import annotations

import os

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from align.config import Zero
from align.engine.plain import PlainEngine
from align.errors import AlignError
from align.roles.backbone import Backbone
from align.roles.modules import plain
from align.roles.policy import TrainedPolicy

pytestmark = pytest.mark.deepspeed
pytest.importorskip("deepspeed")

LEARNING_RATE = 1e-3
MICRO_BATCHES = (2, 3, 1)
TOLERANCE = 1e-3 * LEARNING_RATE * len(MICRO_BATCHES)
CHOICES = {
    "stage1": Zero(stage=1),
    "stage2": Zero(stage=2),
    "stage3": Zero(stage=3),
    "stage2_offload": Zero(stage=2, offload=True),
    "stage3_offload": Zero(stage=3, offload=True),
}
CPU = torch.device("cpu")


def make_engine(module: torch.nn.Module, zero: Zero | None, clip: float, learning_rate: float | None = LEARNING_RATE):
    if zero is None:
        return PlainEngine(module, learning_rate, clip)
    from align.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(module, learning_rate, clip, zero)


def logp(engine, ids_BN: Tensor, length: int) -> Tensor:
    """logp_BT of the last `length` tokens."""
    return engine.forward(ids_BN, torch.ones_like(ids_BN, dtype=torch.bool), length, 1.0, ("actor",))["logp_BT"]


def train(model, zero: Zero | None, clip: float, autocast: bool = False) -> tuple[Tensor, list[float]]:
    """Steps of 2, 3 and 1 micro-batches, each after a forward pass without gradient, as PPO makes them.

    Returns what was trained, flat, and the gradient's norm at each step.
    """
    module = Backbone(model, autocast)
    modes = [m.training for m in module.modules()]
    engine = make_engine(module, zero, clip)
    assert [m.training for m in module.modules()] == modes
    generator, norms = torch.Generator().manual_seed(0), []
    for count in MICRO_BATCHES:
        for number in range(1, count + 1):
            ids_BN = torch.randint(5, 250, (3, 16), generator=generator)
            with torch.no_grad():
                logp(engine, ids_BN, 4)
            engine.backward(-logp(engine, ids_BN, 8).mean() / count, last=number == count)
        norms += engine.step().values()
    with engine.gathered():
        return torch.cat([p.detach().float().flatten() for p in model.parameters() if p.requires_grad]), norms


@pytest.fixture(scope="module")
def reference(lora_model):
    """What plain torch makes of it, by clipping norm, and where it started from."""
    start = torch.cat([p.detach().flatten() for p in lora_model().parameters() if p.requires_grad])
    return {clip: train(lora_model(), None, clip) for clip in (0.0, 1.0)}, start


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_trains_as_plain_torch(lora_model, reference, choice, clip):
    """Gradient norms agree to one in 10^5."""
    (expected, norms), start = reference[0][clip], reference[1]
    found, found_norms = train(lora_model(), CHOICES[choice], clip)
    assert float((expected - start).abs().max()) > LEARNING_RATE, "training moves the weights"
    assert float((found - expected).abs().max()) < TOLERANCE
    assert min(norms) > 1, "clipping has something to do"
    assert found_norms == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_that_are_dropped_have_no_part_in_the_next_step(lora_model, choice):
    """Two micro-batches that no step takes, then a step of two others: as if these were all."""
    rows = torch.randint(5, 250, (4, 3, 16), generator=torch.Generator().manual_seed(1))
    found = []
    for dropped in (True, False):
        model = lora_model()
        engine = make_engine(Backbone(model), CHOICES[choice], 0.0)
        for number in range(0 if dropped else 2, 4):
            if number == 2 and dropped:
                engine.clear()
            engine.backward(-logp(engine, rows[number], 8).mean(), last=number == 3)
        norm = engine.step()
        with engine.gathered():
            found.append((norm, torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_clipping_shows_in_the_weights(reference):
    assert float((reference[0][0.0][0] - reference[0][1.0][0]).abs().max()) > 10 * TOLERANCE


def test_a_bfloat16_base_stays_so_at_stage_2_and_trains_as_plain_torch(lora_model):
    expected, _ = train(lora_model(dtype=torch.bfloat16), None, 1.0, autocast=True)
    model = lora_model(dtype=torch.bfloat16)
    found, _ = train(model, Zero(stage=2), 1.0, autocast=True)
    assert float((found - expected).abs().max()) < TOLERANCE
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("choice", CHOICES)
def test_full_fine_tuning_with_tied_embeddings_trains_and_saves_as_plain_torch(base, tmp_path, choice):
    saved = {}
    for name, zero in {"plain": None, choice: CHOICES[choice]}.items():
        model = AutoModelForCausalLM.from_pretrained(base).eval()
        module = Backbone(model)
        policy = TrainedPolicy(model, make_engine(module, zero, 1.0), CPU)
        ids_BN = torch.arange(5, 45).view(2, 20)
        for _ in range(len(MICRO_BATCHES)):
            policy.engine.backward(logp(policy.engine, ids_BN, 7).mean(), last=True)
            policy.engine.step()
        policy.save(tmp_path / name)
        saved[name] = AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
    assert saved["plain"].keys() == saved[choice].keys()
    assert max(float((saved["plain"][n] - saved[choice][n]).abs().max()) for n in saved["plain"]) < TOLERANCE


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_model_at_stage_3_computes_what_it_did(lora_model, offload, dtype):
    """fp32 to 1e-5, and bit for bit from pass to pass; every weight is sharded away in between."""
    model = lora_model(dtype=dtype).to(dtype).requires_grad_(False)
    module = Backbone(model)
    ids_BN = torch.arange(5, 45).view(2, 20)
    inputs = ids_BN, ids_BN > 0, 7, 1.0, ("actor",)
    with torch.no_grad():
        before = module(*inputs)["logp_BT"]
        engine = make_engine(module, Zero(stage=3, offload=offload), 0.0, learning_rate=None)
        sharded = logp(engine, ids_BN, 7)
        torch.testing.assert_close(sharded, before, rtol=0, atol=1e-5)  # there, logits by the head's own module
        assert {p.numel() for p in model.parameters()} == {0}
        with engine.gathered(), engine.gathered():
            assert torch.equal(module(*inputs)["logp_BT"], sharded)
        assert torch.equal(logp(engine, ids_BN, 7), sharded)


def test_a_policy_at_stage_3_saves_whole_tensors(lora_model, tmp_path):
    model = lora_model()
    whole = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    policy = TrainedPolicy(model, make_engine(Backbone(model), Zero(stage=3), 1.0), CPU)
    fingerprint = policy.hash()
    policy.save(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == whole.keys()
    assert all(torch.equal(saved[name], whole[name]) for name in whole)
    other = lora_model()
    assert policy.hash() == fingerprint == TrainedPolicy(other, make_engine(Backbone(other), None, 1.0), CPU).hash()


def test_generation_at_stage_3_is_plain_generation_and_training_goes_on(lora_model):
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = plain(lora_model()).generate(**prompt, **options)
    model = lora_model()
    engine = make_engine(Backbone(model), Zero(stage=3), 1.0)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in engine.module.modules()]
    ids_BN = torch.arange(5, 45).view(2, 20)
    for turn in range(2):
        with torch.no_grad(), engine.gathered():
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), "no hook at any layer"
            found = plain(model).generate(**prompt, **options)
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in engine.module.modules()] == hooks
        assert torch.equal(found, expected) or turn > 0
        engine.backward(logp(engine, ids_BN, 7).mean(), last=True)
        assert min(engine.step().values()) > 0


def test_the_environment_and_the_terminal_are_left_alone(lora_model, capfd):
    train(lora_model(), Zero(stage=3), 1.0)  # what the first import does is another matter
    capfd.readouterr()
    before = dict(os.environ)
    train(lora_model(), Zero(stage=3), 1.0)
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("stage", "rate"), [(0, 1e-3), (4, 1e-3), (1, None), (2, None)])
def test_a_stage_that_a_role_cannot_have_is_refused(lora_model, stage, rate):
    with pytest.raises(AlignError, match=f"ZeRO stage {stage}: a (trained|frozen) role takes stage"):
        make_engine(Backbone(lora_model()), Zero(stage=stage), 1.0, learning_rate=rate)
