"""Several reward models on one base score as models of their own. float32, 1e-5: more rows in a batch."""

import pytest
import torch
from peft import PeftModel
from sharing import WANT, close, lora, moved, reward_model, rollout, train, weights
from transformers import AutoModelForSequenceClassification

from align.roles.modules import ScoreModule
from align.types import RewardState, Scores, Texts

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def alone(base, rms):
    """scores of a rollout by each reward model, loaded by PEFT alone; shifted and scaled as its card has it"""

    def scores(data, paths=tuple(rms)) -> torch.Tensor:
        found = []
        for number, path in enumerate(paths):
            plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
            module = ScoreModule(PeftModel.from_pretrained(plain, path).eval())
            with torch.no_grad():
                raw_B = module(data.input_ids_BN(), data.mask_BN())
            found.append((raw_B - (0.5 + number)) / 2.0)
        return torch.stack(found)

    return scores


def scored(roles, reward, data):
    scores = roles.score(data, reward.wants) if reward.wants else Scores()
    return reward(data, Texts([], [], []), RewardState(0, scores))


def passes(trunk: torch.nn.Module) -> list[int]:
    """Rows of each forward pass to come."""
    rows: list[int] = []
    trunk.register_forward_hook(lambda module, args, output: rows.append(len(output.last_hidden_state)))
    return rows


@pytest.mark.parametrize("backbone", ["auto", "own"])
def test_three_reward_models_score_as_models_of_their_own(make_roles, rms, alone, backbone):
    roles, reward, _ = make_roles(reward=backbone, models=rms)
    data = rollout(7)
    found, wanted_KB = scored(roles, reward, data), alone(data)
    for number, wanted_B in enumerate(wanted_KB):
        torch.testing.assert_close(found.terms[str(number)], wanted_B, **CLOSE)
    disagreement_B = ((wanted_KB - wanted_KB.mean(0)) ** 2).mean(0).sqrt()
    assert float(disagreement_B.min()) > 0.05, "they differ"
    torch.testing.assert_close(found.terms["disagreement"], disagreement_B, **CLOSE)
    torch.testing.assert_close(found.score_B, wanted_KB.mean(0) - disagreement_B, **CLOSE)


def test_actor_reference_critic_and_three_reward_models_take_one_trunk_pass(make_roles, rms):
    roles, reward, said = make_roles(models=rms)
    home = roles.groups[0].backbone
    assert len(roles.groups) == 1 and reward.wants == {"reward"}
    assert list(home.adapters) == ["actor", "reference", "critic", "reward", "reward_2", "reward_3"]
    assert all(member.slot is None for member in reward.terms.values()), "nothing beside the actor's base"
    assert sum("on the actor's base, score" in line for line in said) == 3
    rows = passes(roles.actor.model.get_base_model().model)
    roles.micro_batch_size = 18
    found = roles.score(rollout(3), WANT)
    assert rows == [18] and found.reward_BK.shape == (3, 3)
    assert roles.groups[0].width({"reward"}) == 3


def test_apart_from_the_actor_they_share_one_base_and_one_pass(make_roles, rms):
    """Scores of one rollout are computed once, whoever asks first; the base's weights are there once."""
    roles, reward, said = make_roles(reward="own", models=rms)
    slots = {id(member.slot): member.slot for member in reward.terms.values()}
    assert len(slots) == 1
    model = next(iter(slots.values())).shared.module.model
    base = [p for name, p in model.named_parameters() if "lora_" not in name and "score" not in name]
    one = AutoModelForSequenceClassification.from_pretrained(model.peft_config["default"].base_model_name_or_path)
    assert sum(p.numel() for p in base) == sum(p.numel() for p in one.model.parameters())
    assert not any(p.requires_grad for p in model.parameters())
    rows = passes(model.get_base_model().model)
    data = rollout(2)
    scored(roles, reward, data)
    assert rows == [6]
    scored(roles, reward, rollout(2, seed=1))
    assert rows == [6, 6]
    assert f"on the backbone of {rms[0]} (backbone=own)" in said[-1]


@pytest.mark.parametrize("backbone", ["auto", "own"])
def test_ranks_and_targets_may_differ(make_roles, rms, alone, base, tmp_path, backbone):
    other = reward_model(base, tmp_path / "other", 1, r=4, target_modules=["q_proj", "v_proj"])
    roles, reward, _ = make_roles(reward=backbone, models=[rms[0], other])
    data = rollout(5)
    found = scored(roles, reward, data)
    for name, wanted_B in zip("01", alone(data, (rms[0], other)), strict=True):
        torch.testing.assert_close(found.terms[name], wanted_B, **CLOSE)


@pytest.mark.parametrize("reward", ["auto", "own"])
def test_a_method_that_cannot_be_routed_takes_a_pass_for_each(make_roles, base, tmp_path, alone, reward):
    """DoRA, as the actor has it: on one base with the actor, or each with a base of its own."""
    paths = [reward_model(base, tmp_path / str(number), number, use_dora=True) for number in range(2)]
    roles, ensemble, _ = make_roles(critic=None, reward=reward, path=base, peft=lora(use_dora=True), models=paths)
    data = rollout(4)
    if reward == "auto":
        assert len(roles.groups[0].backbone.passes({"reward"})) == 2
    else:
        assert len({id(member.slot) for member in ensemble.terms.values()}) == 2
    found = scored(roles, ensemble, data)
    for name, wanted_B in zip("01", alone(data, tuple(paths)), strict=True):
        torch.testing.assert_close(found.terms[name], wanted_B, **CLOSE)


def test_beside_an_actor_that_trains_in_full_they_share_with_each_other(make_roles, rms, alone):
    roles, reward, said = make_roles(critic=None, reward="auto", peft=None, models=rms)
    assert reward.wants == set() and len({id(member.slot) for member in reward.terms.values()}) == 1
    assert said[-1].endswith("(the actor trains all of its weights)")
    data = rollout(4)
    torch.testing.assert_close(scored(roles, reward, data).terms["2"], alone(data)[2], **CLOSE)


def test_training_moves_no_reward_model_by_a_bit(make_roles, rms):
    roles, _, _ = make_roles(models=rms)
    data, backbone = rollout(6, seed=4), roles.groups[0].backbone
    before, held = roles.score(data, WANT), weights(backbone)
    train(roles, 5)
    after = roles.score(data, WANT)
    assert torch.equal(before.reward_BK, after.reward_BK)
    assert not any("reward" in name or "score" in name for name in moved(held, backbone))
    apart, _, _ = make_roles(reward="own", models=rms)
    train(apart, 5)
    close(after, apart.score(data, WANT - {"reward"}), WANT - {"reward"}, atol=1e-4)
