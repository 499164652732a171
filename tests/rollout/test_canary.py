"""The canary finds every engine that serves another policy than the trained one, and never cries over an honest one.

Each cause is planted by doing the real wrong thing. A random tied Llama in float32 on CPU; two engines.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from methods import method
from safetensors.torch import load_file, save_file
from sharing import train

from align.errors import StaleRolloutError
from align.roles.alone import load_roles
from align.rollout.vllm.engine import Settings

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")


def cached(*args, **more):
    """Settings with vLLM's prefix cache, which align leaves off."""
    return dataclasses.replace(Settings(*args, **more), prefix_caching=True)


@pytest.fixture(scope="module")
def made(base):
    """made(method or None) -> roles, and an engine with a prefix cache that serves their actor."""
    from align.rollout.vllm import rollout as vllm

    patch, engines = pytest.MonkeyPatch(), []
    patch.setattr(vllm, "Settings", cached)

    def make(name: str | None):
        torch.manual_seed(0)
        roles = load_roles(base, name and method(name), learning_rate=3e-2)[0]
        engines.append(vllm.VLLMRollout(base, roles.actor, 60, batch_size=8, kv_cache_mib=16, share_weights=False))
        return roles, engines[-1]

    yield make
    for engine in engines:
        engine.close()
    patch.undo()


@pytest.fixture(scope="module")
def lora(made):
    roles, engine = made("lora")
    engine.attach(roles.actor)
    return roles, engine


@pytest.fixture(scope="module")
def full(made):
    roles, engine = made(None)
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.normal_()  # so that a tensor which nothing reaches would show
    return roles, engine


def ask_with(engine, name: str, number: int, folder: Path):
    from vllm.lora.request import LoRARequest

    request = LoRARequest(name, number, str(folder))
    engine.engine.llm_engine.add_lora(request)
    engine.adapters.request = request


def skipped(engine, policy) -> int:
    return 0


def same_id(engine, policy) -> int:
    folder = Path(engine.adapters.folder.name) / f"again-{policy.version}"
    policy.save_adapter(folder)
    ask_with(engine, folder.name, engine.adapters.request.lora_int_id, folder)
    return 1


def same_name_and_path(engine, policy) -> int:
    folder = Path(engine.adapters.request.lora_path)
    policy.save_adapter(folder)
    engine.adapters.pushes += 1
    engine.engine.llm_engine.remove_lora(engine.adapters.request.lora_int_id)
    ask_with(engine, engine.adapters.request.lora_name, engine.adapters.pushes, folder)
    return 1


def other_names(engine, policy) -> int:
    size = type(engine)._push_adapter(engine, policy)
    folder = Path(engine.adapters.folder.name) / f"other-{engine.adapters.pushes}"
    policy.save_adapter(folder)
    file = folder / "adapter_model.safetensors"
    save_file({k.replace(".layers.", ".blocks."): v for k, v in load_file(file).items()}, file, {"format": "pt"})
    engine.adapters.pushes += 1
    ask_with(engine, folder.name, engine.adapters.pushes, folder)
    return size


def unnamed(engine, policy) -> int:
    size = type(engine)._push_adapter(engine, policy)
    engine.adapters.request = None
    return size


def zeroed_slot(engine, policy) -> int:
    size = type(engine)._push_adapter(engine, policy)
    for module in engine.model.modules():
        for slot in getattr(module, "lora_b_stacked", ()):
            slot.zero_()
    return size


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (skipped, "sync before"),
        (same_id, "sync before"),
        (same_name_and_path, "neither|sync before"),
        (other_names, "base without the adapter"),
        (unnamed, "base without the adapter"),
        (zeroed_slot, "base without the adapter"),
    ],
)
def test_a_planted_adapter_fault_is_found_at_the_next_sync(lora, monkeypatch, wrong, cause):
    roles, engine = lora
    engine._rebuild(roles.actor)
    train(roles, who=("actor",))
    engine.sync(roles.actor)  # an honest one, so that there is a policy before
    train(roles, who=("actor",))
    monkeypatch.setattr(engine, "_push_adapter", lambda policy: wrong(engine, policy))
    monkeypatch.setattr(engine, "_rebuild", engine._hand_over)
    with pytest.raises(StaleRolloutError, match=cause):
        engine.sync(roles.actor)
    monkeypatch.undo()
    engine._rebuild(roles.actor)
    assert engine.sync(roles.actor).gap < 1e-4


def test_a_fault_that_a_new_engine_cures_is_cured(lora, monkeypatch):
    roles, engine = lora
    train(roles, who=("actor",))
    engine.sync(roles.actor)
    train(roles, who=("actor",))
    rebuilt, pushes = [], []
    rebuild = engine._rebuild

    def push(policy):
        pushes.append(1)
        return skipped(engine, policy) if not rebuilt else type(engine)._push_adapter(engine, policy)

    monkeypatch.setattr(engine, "_push_adapter", push)
    monkeypatch.setattr(engine, "_rebuild", lambda policy: (rebuilt.append(1), rebuild(policy))[1])
    assert engine.sync(roles.actor).gap < 1e-4 and len(rebuilt) == 1 and len(pushes) == 3


def test_the_first_sync_reaches_every_tensor(full):
    roles, engine = full
    engine.attach(roles.actor)
    mine = dict(roles.actor.model.named_parameters())
    theirs = dict(engine.model.named_parameters())
    rows = len(mine["model.embed_tokens.weight"])
    assert torch.equal(theirs["model.embed_tokens.weight"][:rows], mine["model.embed_tokens.weight"])
    for number in range(2):
        names = [f"model.layers.{number}.self_attn.{part}_proj.weight" for part in "qkv"]
        packed = theirs[f"model.layers.{number}.self_attn.qkv_proj.weight"]
        assert torch.equal(packed, torch.cat([mine[name] for name in names]))


def kept_cache(engine, policy, monkeypatch) -> None:
    monkeypatch.setattr(engine.engine, "reset_prefix_cache", lambda *args: True)


def kept_head(engine, policy, monkeypatch) -> None:
    """The head goes on with its old weights, as a packed copy of a tied embedding does."""
    head = engine.model.lm_head
    old = head.weight.detach().clone()
    monkeypatch.setattr(head, "cpu_linear", lambda x, weight, bias: torch.nn.functional.linear(x, old, bias))


@pytest.mark.parametrize("wrong", [kept_cache, kept_head])
def test_a_planted_fault_of_whole_weights_is_found(full, monkeypatch, wrong):
    roles, engine = full
    engine.sync(roles.actor)
    wrong(engine, roles.actor, monkeypatch)
    train(roles, who=("actor",))
    monkeypatch.setattr(engine, "_rebuild", engine._hand_over)
    with pytest.raises(StaleRolloutError, match=r"neither the new policy nor the old one|sync before"):
        engine.sync(roles.actor)
    monkeypatch.undo()
    engine.engine.reset_prefix_cache()
    assert engine.sync(roles.actor).gap < 1e-4


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_hundred_honest_syncs_raise_no_alarm(request, kind):
    roles, engine = request.getfixturevalue(kind)
    again = []
    for step in range(100):
        if step % 10 == 0:
            train(roles, who=("actor",))
        else:
            with torch.no_grad():
                for parameter in roles.actor.model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(1e-4 * torch.randn_like(parameter))
        before = engine.canary.right
        engine.canary.right = lambda policy, before=before: again.append(1) or before(policy)
        engine.sync(roles.actor)
        engine.canary.right = before
    assert len(again) == 100
