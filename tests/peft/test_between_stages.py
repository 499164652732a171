"""From one stage's method to the next one's: merged exactly, gone on with, or refused with the two ways out."""

from __future__ import annotations

import pytest
import torch
from methods import METHODS, PLUGIN, method
from sharing import rollout, train

from align.engine.plain import PlainEngine
from align.errors import AlignError
from align.roles.alone import load_roles
from align.roles.placement import Placement, RunContext
from align.roles.specs import Actor, Critic

STAY = [*PLUGIN, "prompt", "p_tuning", "prefix", "p_tuning_v2"]
"""Methods that no weights can hold."""


@pytest.fixture(scope="module")
def trained(base_of, tmp_path_factory):
    """trained(name) -> the folder of a policy that this method has moved, and its log-probabilities."""
    made: dict[str, tuple[str, torch.Tensor]] = {}

    def make(name: str) -> tuple[str, torch.Tensor]:
        if name not in made:
            torch.manual_seed(0)
            roles = load_roles(base_of(name), method(name), learning_rate=1e-2, steps=3)[0]
            train(roles, who=("actor",))
            folder = tmp_path_factory.mktemp(name)
            roles.save(folder)
            made[name] = str(folder), roles.score(rollout(), {"logp"}).logp_BT
        return made[name]

    return make


@pytest.mark.parametrize("first", [name for name in METHODS if name not in STAY])
def test_another_method_starts_on_the_merged_policy(trained, first, tmp_path):
    """Tolerance 1e-4: weights folded in float32."""
    folder, before = trained(first)
    second = "ia3" if first != "ia3" else "lora"
    roles = load_roles(folder, method(second), learning_rate=1e-2, steps=3, out=str(tmp_path))[0]
    found = roles.score(rollout(), {"logp", "ref_logp"})
    torch.testing.assert_close(found.logp_BT, before, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.ref_logp_BT, found.logp_BT, rtol=0, atol=1e-6)


@pytest.mark.parametrize("first", STAY)
@pytest.mark.parametrize("second", ["lora", "none"])
def test_what_cannot_merge_is_gone_on_with_or_refused(trained, first, second, tmp_path):
    folder, _ = trained(first)
    with pytest.raises(AlignError, match=r"cannot be merged \(\w.*\n  go on with the same method .* or make"):
        load_roles(folder, None if second == "none" else method(second), steps=3, out=str(tmp_path))


def test_a_plain_lora_does_not_sit_on_what_pissa_leaves(base, tmp_path):
    """The part that PiSSA took out is in the actor's adapter alone."""
    context = RunContext(
        torch.device("cpu"), torch.float32, lambda m, rates, norm, zero: PlainEngine(m, rates, norm), tmp_path
    )
    placement = Placement(context, Actor(base, "auto", 1e-3, method("pissa"), None))
    Critic(base, "auto", 1e-3, method("lora"), None).place(placement)
    assert len(placement.plans) == 2
