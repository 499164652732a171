"""vLLM serves every method whose weights a plain model can hold: one engine, handed merged weights. float32 on CPU.

Tolerance of log-probabilities: 1e-4 nats; a policy that is one update old is off by more than ten times that.
"""

from __future__ import annotations

import copy

import pytest
import torch
from methods import METHODS, ROUTES, method
from peft import LoraConfig
from sharing import train, weights

from align.errors import AlignError
from align.peft.routes import check_servable
from align.roles.alone import load_roles
from align.roles.roles import Roles
from align.rollout.hf import pad_left
from align.types import Generation, Rollout, Sampling

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

PROMPTS = [[5, 300, 7], [260, 261, 262, 263, 264, 265, 266], [100], [40, 41, 42, 43]]
MERGED = [name for name in METHODS if name not in ROUTES]
KEYS = list(range(len(PROMPTS)))
HEAD_TOO = LoraConfig(target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])


def made(name: str, base: str) -> Roles:
    torch.manual_seed(0)
    peft = copy.deepcopy(HEAD_TOO) if name == "lora and the head" else method(name)
    return load_roles(base, peft, learning_rate=3e-2, steps=3)[0]


@pytest.fixture(scope="module")
def engines(base, untied_base):
    """engines(base) -> one engine for all merged policies on that base."""
    from align.rollout.vllm import VLLMRollout

    started = {}

    def engine(path: str) -> VLLMRollout:
        if path not in started:
            started[path] = VLLMRollout(path, made("dora", path).actor, 40, batch_size=8, kv_cache_mib=16)
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


@pytest.mark.parametrize("name", [*MERGED, "lora and the head"])
def test_after_each_update_the_engine_is_the_trainer(engines, base_of, name):
    base = base_of("trainable_tokens" if name == "lora and the head" else name)
    roles, engine = made(name, base), engines(base)
    frozen = {n: p for n, p in weights(roles.actor.model).items() if ".base_layer." in n}
    engine.sync(roles.actor)
    for _ in range(2):
        train(roles, who=("actor",))
        stale = gap(roles, engine.generate(PROMPTS, KEYS, Sampling(1.0, 8, (1,))))
        receipt = engine.sync(roles.actor)
        fresh = gap(roles, engine.generate(PROMPTS, KEYS, Sampling(1.0, 8, (1,))))
        assert fresh < 1e-4 and stale > 10 * fresh
        assert (receipt.mode, receipt.version) == ("merged", roles.actor.version) and receipt.bytes > 10**5
    after = weights(roles.actor.model)
    assert all(torch.equal(after[n], p) for n, p in frozen.items())


@pytest.mark.parametrize("name", [name for name in METHODS if ROUTES.get(name) == "generate"])
def test_what_it_cannot_serve_is_refused_or_left_to_transformers(name):
    with pytest.raises(AlignError, match=r"rollout=vllm: .*\n  write rollout=auto"):
        check_servable(method(name), "vllm", "error")
    assert check_servable(method(name), "auto", "hf")
    assert check_servable(method(name), "vllm", "hf")


def test_a_quantised_base_is_served_as_what_it_stands_for(base, tmp_path):
    """The plain weights once, then the adapter alone after each update; also by a new engine."""
    from align.rollout.vllm import VLLMRollout

    torch.manual_seed(0)
    roles = load_roles(base, method("qlora"), learning_rate=3e-2, out=str(tmp_path))[0]
    engine = VLLMRollout(str(tmp_path / "nf4"), roles.actor, 40, batch_size=8, kv_cache_mib=16)
    try:
        assert engine.adapter and not engine.shared and "quantised" in engine.why_apart
        engine.attach(roles.actor)
        for _ in range(2):
            train(roles, who=("actor",))
            stale = gap(roles, engine.generate(PROMPTS, KEYS, Sampling(1.0, 8, (1,))))
            receipt = engine.sync(roles.actor)
            fresh = gap(roles, engine.generate(PROMPTS, KEYS, Sampling(1.0, 8, (1,))))
            assert fresh < 1e-4 and stale > 10 * fresh and receipt.mode == "adapter"
        engine._rebuild(roles.actor)
        assert gap(roles, engine.generate(PROMPTS, KEYS, Sampling(1.0, 8, (1,)))) < 1e-4
    finally:
        engine.close()
