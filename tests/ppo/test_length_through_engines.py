"""With the length as reward, responses grow through vLLM as through transformers: adapter, merged and full weights.

A random Llama that ends a response at one token in four or so, so that there is much to learn: 3 tokens of 12.
"""

from __future__ import annotations

import pytest
from methods import method

from align.ppo.step import PPO

STEPS = 12
ENDS = tuple(range(150))


def lengths(ppo: PPO, rows: list) -> list[float]:
    """Mean tokens of a response in each step."""
    return [ppo.step(rows)["val/length"] for _ in range(STEPS)]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name, rate", [("lora", 6e-3), ("dora", 6e-3), ("none", 2e-3)])
def test_responses_grow_as_long(make_ppo, rows, base, name, rate):
    pytest.importorskip("vllm")
    from align.rollout.vllm.rollout import VLLMRollout

    def served(actor):
        return VLLMRollout(base, actor, 40, batch_size=64, kv_cache_mib=16)

    grown = {}
    for engine, rollout in (("hf", None), ("vllm", served)):
        ppo = make_ppo(
            peft=None if name == "none" else method(name), critic=False, learning_rate=rate, samples=8, stop_ids=ENDS,
            rollout=rollout, kl_coef=0.0, minibatches=4,
        )  # fmt: skip
        grown[engine] = lengths(ppo, rows)
        if rollout:
            assert ppo.receipt.version == ppo.roles.actor.version == STEPS * 4 * ppo.options.epochs
            ppo.engine.close()
    for curve in grown.values():
        assert sum(curve[-3:]) / 3 > 1.5 * sum(curve[:3]) / 3
    last = {engine: sum(curve[-3:]) / 3 for engine, curve in grown.items()}
    assert last["vllm"] == pytest.approx(last["hf"], rel=0.3)
