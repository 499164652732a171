"""Options of PPO, each against what the loop does without it. float32; runs compared to 1e-6 unless said."""

import dataclasses

import pytest
import torch

from align import ops
from align.errors import AlignError
from align.ppo.options import PPOOptions
from align.types import Scored


class Ids:
    """A score that differs from row to row; `known` says on which rows there is an opinion."""

    wants = frozenset()

    def __init__(self, known=True):
        self.known = torch.tensor(known)

    def __call__(self, rollout, texts, state):
        score_B = rollout.response_ids_BT[:, 0].float() / 100
        return Scored(torch.where(self.known, score_B, torch.nan), {})


def experience_of(ppo):
    """The experience of the last rollout, scored again."""
    rollout, scored = ppo.last
    scores = ppo.roles.score(rollout, {"logp", "ref_logp", "value"})
    return ppo.experience(rollout, scores, scored)


def test_a_completion_without_eos_has_the_fixed_score_unless_there_is_no_opinion(make_ppo, rows):
    reward = Ids([True, False] * 4)
    ppo = make_ppo(missing_eos_score=-1.5, reward=reward, stop_ids=(1, *range(0, 400, 20)))
    ppo.step(rows)
    rollout, scored = ppo.last
    plain_B = reward(rollout, None, None).score_B
    replaced_B = ~rollout.finished_B & reward.known
    assert replaced_B.any() and (rollout.finished_B & reward.known).any()
    torch.testing.assert_close(scored.score_B, plain_B, equal_nan=True)
    found_B = ppo.penalised(scored.score_B, rollout.finished_B)
    torch.testing.assert_close(found_B, torch.where(replaced_B, -1.5, plain_B), equal_nan=True)


def test_whitened_rewards_have_variance_one_and_keep_their_mean(make_ppo, rows):
    seen = []

    class Spy:
        needs_critic, min_samples = True, 1

        def __call__(self, score_B, reward_BT, value_BT, mask_BT, group_B):
            seen.append(reward_BT[mask_BT])
            return torch.zeros_like(reward_BT), torch.zeros_like(reward_BT)

    for whiten in (False, True):
        ppo = make_ppo(reward=Ids(), whiten_rewards=whiten)
        ppo.advantage = Spy()
        ppo.step(rows)
    plain, white = seen
    assert abs(float(plain.var()) - 1) > 0.1
    assert float(white.var()) == pytest.approx(1, abs=1e-4)
    assert float(white.mean()) == pytest.approx(float(plain.mean()), abs=1e-5)


@pytest.mark.parametrize(("target", "grows"), [(1e-3, True), (1e3, False)])
def test_the_kl_coefficient_is_steered_to_its_target(make_ppo, rows, target, grows):
    ppo = make_ppo(kl_target=target, kl_horizon=80, learning_rate=1e-2)
    steered = ops.AdaptiveKL(0.05, target, 80)
    coefficients = []
    for _ in range(3):
        metrics = ppo.step(rows)
        assert metrics["objective/kl_coef"] == steered.value  # that which the step used
        coefficients.append(steered.update(metrics["objective/kl"], len(rows)))
    assert ppo.kl_coef == coefficients[-1]
    assert (coefficients[-1] > coefficients[0]) == grows


def test_the_coefficient_of_the_step_is_the_price_in_the_reward(make_ppo, rows):
    """Rewards of a rollout fall by the KL times the difference of the coefficients."""
    ppo = make_ppo(reward=Ids(), learning_rate=1e-2, kl_estimator="k2")
    for _ in range(2):
        ppo.step(rows)
    assert "objective/kl_coef" in experience_of(ppo)[1]
    rollout, scored = ppo.last
    scores = ppo.roles.score(rollout, {"logp", "ref_logp", "value"})
    k2 = (0.5 * (scores.logp_BT - scores.ref_logp_BT).square() * rollout.response_mask_BT).sum(1).mean()
    assert k2 > 0.01
    for coefficient in (0.05, 3.0):
        ppo.kl_coef = coefficient
        _, metrics = ppo.experience(rollout, scores, scored)
        assert metrics["objective/non_score_reward"] == pytest.approx(-coefficient * float(k2), rel=1e-4)


def test_a_fixed_coefficient_stays(make_ppo, rows):
    ppo = make_ppo()
    assert [ppo.step(rows)["objective/kl_coef"] for _ in range(2)] == [0.05, 0.05]


def trained(ppo, role):
    return [p.detach().clone() for p in ppo.roles.group(role).engine.module.trained(role)]


@pytest.mark.parametrize("critic", ["own", "adapter"])
def test_only_the_critic_trains_while_it_warms_up(make_ppo, rows, critic):
    ppo = make_ppo(critic_warmup=2, critic=critic)
    for step in range(3):
        before = {role: trained(ppo, role) for role in ("actor", "critic")}
        metrics = ppo.step(rows)
        moved = {
            role: any(not torch.equal(a, b) for a, b in zip(was, trained(ppo, role), strict=True))
            for role, was in before.items()
        }
        assert moved == {"critic": True, "actor": step == 2}
        assert ("grad_norm/actor" in metrics) == ("loss/policy_avg" in metrics) == (step == 2)
        assert metrics["val/optimizer_steps"] == 4


def test_the_first_updates_of_the_critic_are_those_without_warm_up(make_ppo, rows):
    """Its first minibatch of the first step does not know of the actor."""
    warm, cold = make_ppo(critic_warmup=1, epochs=1, minibatches=1), make_ppo(epochs=1, minibatches=1)
    a, b = warm.step(rows), cold.step(rows)
    assert a["loss/value_avg"] == b["loss/value_avg"] and a["grad_norm/critic"] == b["grad_norm/critic"]


def test_the_passes_end_when_the_policy_is_too_far_from_the_old_one(make_ppo, rows):
    settings = {"epochs": 3, "minibatches": 2, "learning_rate": 1e-2}
    free, held = make_ppo(**settings), make_ppo(target_kl=1e-9, **settings)
    assert free.step(rows)["val/optimizer_steps"] == 6
    # The first minibatch is that of the old policy: KL 0. The second has moved.
    assert held.step(rows)["val/optimizer_steps"] == held.roles.actor.version == 2
    assert make_ppo(target_kl=1e3, **settings).step(rows)["val/optimizer_steps"] == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kl_in": "los"}, "ppo.kl_in=los: use one of reward, loss"),
        ({"kl_in": "loss", "kl_estimator": "k1"}, "use ppo.kl_estimator=k3"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "use ppo.kl_coef"),
        ({"old_logp": "engine", "importance_correction": "token"}, "use ppo.old_logp=trainer"),
        ({"missing_eos_penalty": 1.0, "missing_eos_score": -1.0}, "use one of them"),
        ({"loss_aggregation": "mean"}, "fixed_length"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_script_too(make_ppo, options, words):
    with pytest.raises(AlignError, match=words.replace(".", r"\.")):
        make_ppo(**options)


@pytest.mark.parametrize("options", [{"kl_in": "loss"}, {"old_logp": "engine"}, {"missing_eos_penalty": 0.0}])
def test_options_that_can_be_are_not(make_ppo, options):
    assert dataclasses.asdict(make_ppo(**options).options) == dataclasses.asdict(
        PPOOptions(batch_size=8, micro_batch_size=4, **options)
    )
