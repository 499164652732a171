"""vLLM on the trainer's own weights: the trainer computes what it did, and the engine what the trainer does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from align.config import Zero
from align.engine.plain import PlainEngine
from align.errors import AlignError
from align.roles.backbone import Backbone
from align.roles.modules import plain
from align.roles.policy import TrainedPolicy
from align.rollout.hf import pad_left
from align.types import Rollout, Sampling

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 40], [77, 12, 30, 31, 8], [6]]
KEYS = [11, 12, 13]
SAMPLED = Sampling(temperature=1.0, max_new_tokens=10, stop_ids=(1,))
TOLERANCE = 3e-5  # fp32, two implementations of one model; a stale or missing update shows as 0.1 or more
RATE = 1e-3


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Llamas with grouped queries and a vocabulary that vLLM pads, tied and untied."""
    found = {}
    for name in ("tied", "untied"):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.15, pad_token_id=0,
            tie_word_embeddings=name == "tied",
        )  # fmt: skip
        found[name] = str(tmp_path_factory.mktemp(name))
        LlamaForCausalLM(config).save_pretrained(found[name])
    return found


def make_policy(folder: str, method: str, zero: int | None) -> TrainedPolicy:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if method == "lora":
        torch.manual_seed(1)
        model = get_peft_model(model.requires_grad_(False), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    backbone = Backbone(model).eval()
    if zero is None:
        return TrainedPolicy(model, PlainEngine(backbone, {"actor": RATE}, 1.0), CPU)
    pytest.importorskip("deepspeed")
    from align.engine.deepspeed import DeepSpeedEngine

    return TrainedPolicy(model, DeepSpeedEngine(backbone, {"actor": RATE}, 1.0, Zero(stage=zero)), CPU)


def rollout(generation) -> Rollout:
    ids_BP, mask_BP = pad_left(PROMPTS, 0)
    rows = torch.arange(len(PROMPTS))
    return Rollout(
        ids_BP, mask_BP, generation.response_ids_BT, generation.mask_BT, generation.mask_BT, generation.logp_BT,
        rows, rows, generation.finished_B, generation.version_B, 1.0,
    )  # fmt: skip


def update(policy: TrainedPolicy, step: int) -> None:
    """One step on random rows."""
    ids_BN = torch.randint(5, 290, (4, 16), generator=torch.Generator().manual_seed(step))
    mask_BN = torch.ones_like(ids_BN, dtype=torch.bool)
    with policy.engine.module.serving(("actor",), 4):
        logp_BT = policy.engine.forward(ids_BN, mask_BN, 8, 1.0, ("actor",))["logp_BT"]
        policy.engine.backward(-logp_BT.mean(), last=True)
    policy.engine.step()
    policy.version += 1


def gap(engine, policy: TrainedPolicy) -> float:
    """Largest difference between the engine's log-probabilities of its samples and the trainer's."""
    generation = engine.generate(PROMPTS, KEYS, SAMPLED)
    with torch.no_grad():
        difference = policy.logp_BT(rollout(generation)) - generation.logp_BT
    return float(difference[generation.mask_BT].abs().max())


def trained(policy: TrainedPolicy) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in policy.model.named_parameters()}


@pytest.mark.parametrize("tying", ["tied", "untied"])
@pytest.mark.parametrize(("method", "zero"), [("lora", None), ("lora", 2), ("full", None), ("full", 2)])
def test_the_engine_serves_the_policy_after_each_of_6_updates(folders, tying, method, zero, tmp_path):
    """Training is bit for bit that on separate weights; a new engine in between stands on them, too."""
    from align.rollout.vllm.rollout import VLLMRollout

    alone = make_policy(folders[tying], method, zero)
    policy = make_policy(folders[tying], method, zero)
    probe = torch.arange(5, 45).view(2, 20)
    before = plain(policy.model)(probe).logits
    engine = VLLMRollout(folders[tying], policy, 32, batch_size=4, kv_cache_mib=8, share_weights=True)
    try:
        assert engine.shared and torch.equal(plain(policy.model)(probe).logits, before), "logits to the bit"
        engine.attach(policy)
        first = engine.generate(PROMPTS, KEYS, SAMPLED)
        for step in range(6):
            if step == 3:
                engine.close()
                engine = VLLMRollout(folders[tying], policy, 32, batch_size=4, kv_cache_mib=8, share_weights=True)
            update(policy, step)
            update(alone, step)
            receipt = engine.sync(policy)
            assert receipt.mode == ("adapter" if method == "lora" else "shared")
            assert receipt.bytes == 0 or method == "lora"
            assert gap(engine, policy) < TOLERANCE, step
        after = engine.generate(PROMPTS, KEYS, SAMPLED)
        assert not torch.equal(first.logp_BT, after.logp_BT)
        one, other = trained(policy), trained(alone)
        assert all(torch.equal(one[name], other[name]) for name in one), "training, to the bit"
        policy.save(tmp_path / "shared"), alone.save(tmp_path / "alone")
        assert engine.weights.holds(), "saving parts nothing"
        file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
        saved = [load_file(tmp_path / name / file) for name in ("shared", "alone")]
        assert saved[0].keys() == saved[1].keys()
        assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
        sizes = [os.path.getsize(tmp_path / name / file) for name in ("shared", "alone")]
        assert sizes[0] == sizes[1], "no storage is written twice"
    finally:
        engine.close()


def test_a_parted_view_is_found_and_mended(folders):
    from align.rollout.vllm.rollout import VLLMRollout

    policy = make_policy(folders["untied"], "full", None)
    engine = VLLMRollout(folders["untied"], policy, 32, batch_size=4, kv_cache_mib=8)
    try:
        engine.attach(policy)
        layer = policy.model.model.layers[0].self_attn.q_proj
        layer.weight.data = layer.weight.data.clone() * 1.5
        assert not engine.weights.holds()
        engine.sync(policy)
        assert engine.weights.holds() and gap(engine, policy) < TOLERANCE
    finally:
        engine.close()


def test_a_copy_of_all_weights_is_made_anew_at_each_sync(folders):
    from align.rollout.vllm.rollout import VLLMRollout

    policy = make_policy(folders["tied"], "full", None)
    engine = VLLMRollout(folders["tied"], policy, 32, batch_size=4, kv_cache_mib=8, share_weights=False)
    try:
        assert not engine.shared and engine.why_apart == "share_weights=false"
        engine.attach(policy)
        for step in range(2):
            update(policy, step)
            assert gap(engine, policy) > 1e-2, "before the sync, the old policy"
            receipt = engine.sync(policy)
            assert receipt.mode == "full" and receipt.bytes > 4 * 300 * 64
            assert gap(engine, policy) < TOLERANCE
    finally:
        engine.close()


def test_stage_3_falls_back_to_a_copy_or_is_refused(folders):
    from align.rollout.vllm.rollout import VLLMRollout

    policy = make_policy(folders["untied"], "full", 3)
    with pytest.raises(AlignError, match=r"rollout\.share_weights=true: .*ZeRO stage 3"):
        VLLMRollout(folders["untied"], policy, 32, batch_size=4, kv_cache_mib=8, share_weights=True)
    engine = VLLMRollout(folders["untied"], policy, 32, batch_size=4, kv_cache_mib=8)
    try:
        engine.attach(policy)
        update(policy, 0)
        engine.sync(policy)
        assert engine.why_apart == "ZeRO stage 3 divides them" and gap(engine, policy) < TOLERANCE
    finally:
        engine.close()


def test_one_base_in_memory(folders):
    """Every weight of vLLM's model lies in the trainer's storages."""
    from align.rollout.vllm.rollout import VLLMRollout

    policy = make_policy(folders["untied"], "lora", None)
    engine = VLLMRollout(folders["untied"], policy, 32, batch_size=4, kv_cache_mib=8)
    try:
        ours = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
        theirs = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
        assert theirs <= ours
    finally:
        engine.close()


def test_a_folder_of_weights_is_not_read_when_they_are_shared(folders, tmp_path):
    """The engine needs the config alone."""
    from align.rollout.vllm.rollout import VLLMRollout

    policy = make_policy(folders["untied"], "full", None)
    (tmp_path / "config.json").write_text(Path(folders["untied"], "config.json").read_text())
    engine = VLLMRollout(str(tmp_path), policy, 32, batch_size=4, kv_cache_mib=8)
    try:
        engine.attach(policy)
        assert gap(engine, policy) < TOLERANCE
    finally:
        engine.close()
