"""vLLM serves every method that a plain model can hold, or that stands before a text as embeddings. float32 on CPU.

Tolerance of log-probabilities: 1e-4 nats; a policy that is one update old is off by more than ten times that.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from methods import METHODS, ROUTES, method
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from sharing import train

from align.errors import AlignError, StaleRolloutError
from align.peft.quantized import on_quantized
from align.peft.routes import check_servable, lora_rank
from align.roles.alone import load_roles
from align.roles.roles import Roles
from align.rollout.hf import pad_left
from align.rollout.vllm.engine import Settings
from align.types import Generation, Rollout, Sampling

if TYPE_CHECKING:
    from align.rollout.vllm.rollout import VLLMRollout

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

PROMPTS = [[5, 300, 7], [260, 261, 262, 263, 264, 265, 266], [100], [40, 41, 42, 43]]
PROMPTS.append([*range(40, 80)])  # longer than a block of the key-value cache
MERGED = [name for name in METHODS if name not in ROUTES]
CONVERTED = [name for name in METHODS if ROUTES.get(name) == "converted"]
EMBEDDINGS = [name for name in METHODS if ROUTES.get(name) == "embeddings"]
KEYS = list(range(len(PROMPTS)))
SAMPLED = Sampling(1.0, 8, (1,))
HEAD_TOO = LoraConfig(target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])


def made(name: str, base: str) -> Roles:
    torch.manual_seed(0)
    peft = copy.deepcopy(HEAD_TOO) if name == "lora and the head" else method(name)
    return load_roles(base, peft, learning_rate=3e-2, steps=3)[0]


@pytest.fixture(scope="module")
def engines():
    """engines(base) -> one engine for all merged policies on that base."""
    from align.rollout.vllm.rollout import VLLMRollout

    started = {}

    def engine(path: str) -> VLLMRollout:
        if path not in started:
            started[path] = VLLMRollout(path, made("dora", path).actor, 80, batch_size=8, kv_cache_mib=16)
            assert "vLLM serves no LoRA with use_dora" in started[path].why_apart
        return started[path]

    yield engine
    for one in started.values():
        one.close()


def gap(roles: Roles, written: Generation) -> float:
    """The most that trainer and engine differ by in any token's log-probability."""
    ids_BP, mask_BP = pad_left(PROMPTS, 0)
    zeros = torch.zeros(len(PROMPTS), dtype=torch.long)
    data = Rollout(
        ids_BP, mask_BP, written.response_ids_BT, written.mask_BT, written.mask_BT, written.logp_BT, zeros, zeros,
        written.finished_B, zeros, 1.0,
    )  # fmt: skip
    return float((roles.score(data, {"logp"}).logp_BT - written.logp_BT).abs().max())


def follow(roles: Roles, engine: VLLMRollout, mode: str) -> list[int]:
    """Two updates, after each of which the engine is the trainer; the bytes of each sync."""
    frozen = {n: p.detach().clone() for n, p in roles.actor.model.named_parameters() if not p.requires_grad}
    sizes = []
    for _ in range(2):
        train(roles, who=("actor",))
        stale = gap(roles, engine.generate(PROMPTS, KEYS, SAMPLED))
        receipt = engine.sync(roles.actor)
        fresh = gap(roles, engine.generate(PROMPTS, KEYS, SAMPLED))
        assert fresh < 1e-4 and stale > 10 * fresh
        assert gap(roles, engine.generate(PROMPTS, KEYS, replace(SAMPLED, greedy=True))) < 1e-4
        assert (receipt.mode, receipt.version) == (mode, roles.actor.version)
        sizes.append(receipt.bytes)
    after = dict(roles.actor.model.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items())
    return sizes


@pytest.mark.parametrize("name", [*MERGED, "lora and the head"])
def test_after_each_update_the_engine_is_the_trainer(engines, base_of, name):
    base = base_of("trainable_tokens" if name == "lora and the head" else name)
    roles, engine = made(name, base), engines(base)
    engine.sync(roles.actor)
    assert min(follow(roles, engine, "merged")) > 10**5


@pytest.fixture
def started(base, monkeypatch):
    """started(roles, **options) -> an engine with vLLM's prefix cache, on the trainer's own weights."""
    from align.rollout.vllm import rollout as vllm

    engines = []
    monkeypatch.setattr(vllm, "Settings", lambda *args, **more: Settings(*args, **more, prefix_caching=True))

    def start(roles: Roles, **more: bool) -> VLLMRollout:
        engines.append(vllm.VLLMRollout(base, roles.actor, 80, batch_size=8, kv_cache_mib=16, **more))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("name", CONVERTED)
def test_what_equals_a_lora_is_served_as_one(started, base, name):
    """On the trainer's own base; what is sent is the LoRA alone."""
    roles = made(name, base)
    engine = started(roles)
    assert engine.shared and engine.attach(roles.actor).mode == "converted"
    layers = [m for m in roles.actor.model.modules() if isinstance(m, BaseTunerLayer)]
    numbers = sum(lora_rank(method(name)) * (m.in_features + m.out_features) for m in layers)
    for size in follow(roles, engine, "converted"):
        assert 4 * numbers < size < 4 * numbers + 5000, "float32, and the file's header"
    assert engine.weights.holds()


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_virtual_tokens_stand_before_each_prompt(started, base, name):
    """As embeddings, on the trainer's own base; an engine that goes on with the old ones is found."""
    roles = made(name, base)
    engine = started(roles)
    assert engine.shared and engine.attach(roles.actor).mode == "embeddings"
    sizes = follow(roles, engine, "embeddings")
    assert sizes == [4 * 20 * roles.actor.model.config.hidden_size] * 2 and engine.weights.holds()

    together = engine.generate(PROMPTS, KEYS, SAMPLED)
    for row, (prompt, key) in enumerate(zip(PROMPTS, KEYS, strict=True)):
        alone = engine.generate([prompt], [key], SAMPLED)
        written = alone.response_ids_BT[0][alone.mask_BT[0]]
        assert torch.equal(together.response_ids_BT[row][together.mask_BT[row]], written)
    stop = int(together.response_ids_BT[0, 3])
    ended = engine.generate(PROMPTS[:1], KEYS[:1], Sampling(1.0, 8, (stop,)))
    assert ended.finished_B[0] and int(ended.mask_BT.sum()) <= 4

    train(roles, who=("actor",))
    engine.prompts.take, take = lambda policy: 0, engine.prompts.take
    engine._rebuild = engine._hand_over
    with pytest.raises(StaleRolloutError, match="the policy of the sync before"):
        engine.sync(roles.actor)
    engine.prompts.take = take
    assert engine.sync(roles.actor).gap < 1e-4


def test_a_base_whose_tensors_mean_something_else_there_is_read_from_disk(started, base, monkeypatch):
    """Keys and queries of one shape, which vLLM has the other way round; so it is with BLOOM's."""
    from vllm.model_executor.models.llama import LlamaForCausalLM

    monkeypatch.setitem(LlamaForCausalLM.packed_modules_mapping, "qkv_proj", ["k_proj", "q_proj", "v_proj"])
    roles = made("prompt", base)
    engine = started(roles)
    assert not engine.shared and "of a llama model in another order" in engine.why_apart
    engine.attach(roles.actor)
    follow(roles, engine, "embeddings")
    with pytest.raises(AlignError, match=r"rollout\.share_weights=true: .* in another order"):
        started(roles, share_weights=True)


@pytest.mark.parametrize("name", [name for name in METHODS if ROUTES.get(name) == "generate"])
def test_what_it_cannot_serve_is_refused_or_left_to_transformers(name):
    with pytest.raises(AlignError, match=r"rollout=vllm: .*\n  use rollout=auto"):
        check_servable(method(name), "vllm", "error")
    assert check_servable(method(name), "auto", "hf")
    assert check_servable(method(name), "vllm", "hf")


@pytest.mark.parametrize(("name", "mode"), [("qlora", "adapter"), ("miss", "converted"), ("p_tuning", "embeddings")])
def test_a_quantised_base_is_served_as_what_it_stands_for(base, tmp_path, name, mode):
    """The plain weights once, then the adapter alone after each update; also by a new engine."""
    from align.rollout.vllm.rollout import VLLMRollout

    torch.manual_seed(0)
    config = on_quantized(method(name), "nf4")
    roles = load_roles(base, config, learning_rate=3e-2, out=str(tmp_path))[0]
    engine = VLLMRollout(str(tmp_path / "nf4"), roles.actor, 80, batch_size=8, kv_cache_mib=16)
    try:
        assert not engine.shared and "quantised" in engine.why_apart
        engine.attach(roles.actor)
        follow(roles, engine, mode)
        engine._rebuild(roles.actor)
        assert gap(roles, engine.generate(PROMPTS, KEYS, SAMPLED)) < 1e-4
    finally:
        engine.close()
