"""Every method of conf/peft goes through PPO's roles: its reference, its updates, its folder, its way to the engine.

A random Llama of 2 layers in float32 on CPU.
"""

from __future__ import annotations

import pytest
import torch
from methods import METHODS, ROUTES, method
from peft import PeftConfig, PeftModel
from sharing import rollout, train, weights
from transformers import AutoModelForCausalLM

from align.peft import routes
from align.peft.adapters import use_adapter
from align.peft.merging import merged_tensors
from align.peft.quantized import computing_in
from align.roles.alone import load_roles
from align.roles.roles import Roles
from align.rollout.hf import HFRollout, pad_left
from align.types import Rollout, Sampling


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


@pytest.fixture
def home(name, base_of) -> str:
    return base_of(name)


@pytest.fixture
def roles(name, home) -> Roles:
    torch.manual_seed(0)
    return load_roles(home, method(name), learning_rate=1e-2, critic="auto", micro_batch_size=4, steps=3)[0]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(rollout().input_ids_BN()).logits


def test_the_reference_is_the_policy_at_step_0_and_never_moves(roles):
    before = roles.score(rollout(), {"logp", "ref_logp"})
    assert float((before.logp_BT - before.ref_logp_BT).abs().max()) < 1e-6
    norms = train(roles, 3)
    assert all(norm["actor"] > 0 and norm["critic"] > 0 for norm in norms)
    train(roles, 47, who=("actor",))
    after = roles.score(rollout(), {"logp", "ref_logp"})
    assert torch.equal(after.ref_logp_BT, before.ref_logp_BT)
    assert float((after.logp_BT - before.logp_BT).abs().max()) > 1e-4


def test_plain_peft_reads_the_folder(roles, name, home, tmp_path):
    train(roles)
    roles.save(tmp_path)
    base = PeftConfig.from_pretrained(tmp_path).base_model_name_or_path
    assert (base == home) == (name not in ("pissa", "qlora"))
    plain = computing_in(AutoModelForCausalLM.from_pretrained(base), torch.float32)
    again = PeftModel.from_pretrained(plain, tmp_path).eval()
    with use_adapter(roles.actor.model, "default"):
        torch.testing.assert_close(logits(again), logits(roles.actor.model), rtol=0, atol=1e-5)


def test_its_route_and_what_the_engine_would_be_sent(roles, name, home):
    way = routes.route(method(name))
    assert way.mode == ROUTES.get(name, "merged")
    train(roles)
    model = roles.actor.model
    if not routes.mergeable(method(name)) or name == "qlora":  # nothing is merged into quantised weights
        return
    before = weights(model)
    pointers = {n: p.data_ptr() for n, p in model.named_parameters()}
    plain = AutoModelForCausalLM.from_pretrained(home)
    with use_adapter(model, "default"):
        state = {n: t.clone() for n, t in merged_tensors(model)}
        assert state.keys() == {n for n, _ in plain.named_parameters(remove_duplicate=False)}
        plain.load_state_dict(state)
        torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-4)
    assert all(torch.equal(p, before[n]) and p.data_ptr() == pointers[n] for n, p in model.named_parameters())


def test_a_row_has_the_logp_of_the_row_alone(roles):
    """Whatever padding others bring it."""
    train(roles)
    data = rollout(8)
    together = roles.score(data, {"logp", "value"})
    for row in range(8):
        alone = roles.score(data[torch.tensor([row])].trim(), {"logp", "value"})
        for mine, theirs in ((together.logp_BT, alone.logp_BT), (together.value_BT, alone.value_BT)):
            width = theirs.shape[1]
            torch.testing.assert_close(mine[row, :width], theirs[0], rtol=0, atol=1e-5)


def test_transformers_writes_what_the_trainer_scores(roles):
    """Prompts of several lengths, padded on the left; log-probabilities to 1e-4."""
    train(roles)
    engine = HFRollout(pad_id=0)
    engine.attach(roles.actor)
    prompts = [[5, 300, 7], [260, 261, 262, 263, 264, 265, 266], [100]]
    written = engine.generate(prompts, [1, 2, 3], Sampling(0.8, 6, (1,)))
    ids_BP, mask_BP = pad_left(prompts, 0)
    zeros = torch.zeros(3, dtype=torch.long)
    data = Rollout(
        ids_BP, mask_BP, written.response_ids_BT, written.mask_BT, written.mask_BT, written.logp_BT, torch.arange(3),
        zeros, written.finished_B, zeros, 0.8,
    )  # fmt: skip
    torch.testing.assert_close(roles.score(data, {"logp"}).logp_BT, written.logp_BT, rtol=0, atol=1e-4)


def test_the_same_method_goes_on_from_the_folder(roles, name, tmp_path):
    """The same policy from the folder, and the same step from there: nothing that trains was lost."""
    train(roles)
    roles.save(tmp_path)
    again = load_roles(
        str(tmp_path), method(name), learning_rate=1e-2, critic="auto", critic_path=str(tmp_path / "critic"),
        micro_batch_size=4, steps=3,
    )[0]  # fmt: skip
    data, want = rollout(seed=7), {"logp", "value", "ref_logp"}
    before, after = roles.score(data, want), again.score(data, want)
    torch.testing.assert_close(after.logp_BT, before.logp_BT, rtol=0, atol=1e-6)
    torch.testing.assert_close(after.ref_logp_BT, after.logp_BT, rtol=0, atol=1e-6)
    torch.testing.assert_close(after.value_BT, before.value_BT, rtol=0, atol=1e-6)


def test_nothing_but_the_method_trains_and_dropout_is_off(roles):
    model = roles.actor.model
    assert not any(module.training for module in model.modules())
    trained = {id(p) for group in roles.groups for role in group.trained for p in group.backbone.trained(role)}
    assert 0 < sum(p.numel() for p in model.parameters() if id(p) in trained)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in trained) == 0


def test_a_method_of_ones_own_is_one_of_peft(base):
    from peft import HRAConfig

    roles, *_ = load_roles(base, HRAConfig(r=2, target_modules="all-linear"), learning_rate=1e-2)
    before = roles.score(rollout(), {"logp", "ref_logp"})
    assert float((before.logp_BT - before.ref_logp_BT).abs().max()) < 1e-6
    assert train(roles)[0]["actor"] > 0
