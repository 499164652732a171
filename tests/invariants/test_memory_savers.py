"""What saves memory changes no number: checkpointing, and roles on one base. Tolerances: `runs`."""

import pytest
import torch
from runs import SETUPS, check_alike, check_same_tokens, play, trained

from align.ppo.rollouts import write
from align.roles.modules import plain


def calls_of_a_layer(ppo, role: str = "actor") -> list[bool]:
    """Each call of the first layer under `role`, filled as it runs: whether it is to be differentiated."""
    calls: list[bool] = []
    layer = plain(ppo.roles.group(role).backbone.model).base_model.layers[0]
    # before the forward: torch ends a recomputation as soon as it has what was missing
    layer.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    return calls


@pytest.mark.parametrize("setup", SETUPS)
def test_gradient_checkpointing_does_not_matter(make, rows, reference_run, setup):
    check_alike(play(make(setup, checkpointing=True), rows), reference_run(setup))


@pytest.mark.parametrize("setup", ["own", "adapter", "full_head"])
def test_layers_are_computed_twice_in_training_alone(make, rows, setup):
    """epochs x minibatches passes are differentiated, each made again; scoring and generation are not."""
    kept, again = make(setup), make(setup, checkpointing=True)
    counts = []
    for ppo in (kept, again):
        per_role = [calls_of_a_layer(ppo, group.trained[0]) for group in ppo.roles.groups if group.trained]
        ppo.step(rows)
        counts.append([(calls.count(True), calls.count(False)) for calls in per_role])
    for (once, scoring), (twice, scoring_too) in zip(*counts, strict=True):
        assert (once, twice) == (4, 8)
        assert scoring == scoring_too


def test_generation_under_checkpointing_keeps_its_cache_and_its_tokens(make, rows):
    """One prompt pass, then one token a row a pass: nothing is computed again; the layers recompute afterwards."""
    kept, again = make("own"), make("own", checkpointing=True)
    layer = plain(again.roles.actor.model).base_model.layers[0]
    widths = []
    hook = layer.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(args[0].shape[1]), with_kwargs=True
    )
    one, other = (write(ppo.engine, rows, ppo.sampling, seed=5, purpose="train") for ppo in (kept, again))
    hook.remove()
    assert torch.equal(one.response_ids_BT, other.response_ids_BT) and torch.equal(one.logp_BT, other.logp_BT)
    assert widths[0] > 1 and widths[1:] == [1] * (one.response_ids_BT.shape[1] - 1)
    assert layer.training and not layer.self_attn.training


def same_start(adapter, own) -> None:
    """Gives the own critic the weights of the critic's adapter on the shared base: LoRA's start is random."""
    ours, theirs = (ppo.roles.group("critic").engine.module.trained("critic") for ppo in (adapter, own))
    with torch.no_grad():
        for p, q in zip(theirs, ours, strict=True):
            p.copy_(q)


def test_a_critic_on_the_shared_base_trains_as_one_on_its_own(make, rows):
    """From the same weights, three steps: the same values, losses and weights of both roles."""
    adapter, own = make("adapter"), make("own")
    same_start(adapter, own)
    assert len(adapter.roles.groups) == 1 and len(own.roles.groups) == 2
    check_alike(play(adapter, rows, 3), play(own, rows, 3))
    one, other = (ppo.roles.score(adapter.last[0], {"value"}).value_BT for ppo in (adapter, own))
    assert one.std() > 0.01
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)  # after 12 optimizer steps


def test_a_critic_of_either_kind_knows_nothing_at_first(make, rows):
    """A zero head: the first advantages are the same for all kinds, and so is the actor's first update."""
    found = {}
    for kind in ("own", "adapter", "head"):
        ppo = make(kind, epochs=1, minibatches=1)
        metrics = ppo.step(rows)
        found[kind] = metrics["grad_norm/actor"], metrics["loss/value_avg"], metrics["loss/policy_avg"]
    assert found["own"][0] > 0.01
    assert found["adapter"] == pytest.approx(found["own"], rel=1e-4, abs=1e-6)
    assert found["head"] == pytest.approx(found["own"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("setup", ["own", "adapter", "full"])
def test_the_base_without_its_adapter_is_the_reference_that_a_frozen_copy_is(make, rows, base, reference_run, setup):
    """The copy is loaded from the base's folder, and stays as it was loaded."""
    ppo = make(setup, reference=base)
    frozen = ppo.roles.group("reference")
    assert not frozen.trained and frozen is not ppo.roles.group("actor")
    before = [p.clone() for p in frozen.backbone.parameters()]
    run = play(ppo, rows)
    check_alike(run, reference_run(setup))
    assert run.metrics[1]["objective/kl"] > 0.01
    assert all(torch.equal(p, q) for p, q in zip(before, frozen.backbone.parameters(), strict=True))


def test_runs_of_other_weights_are_not_alike(make, rows, reference_run):
    """The comparison sees what it is for: one LoRA matrix of the actor half as large again."""
    ppo = make("own")
    with torch.no_grad():
        ppo.roles.group("actor").engine.module.trained("actor")[0].mul_(1.5)
    other = play(ppo, rows)
    with pytest.raises(AssertionError):
        check_alike(other, reference_run("own"))
    assert trained(ppo.roles).keys() == reference_run("own").weights.keys()
    with pytest.raises(AssertionError):
        check_same_tokens(play(ppo, rows), reference_run("own"))
