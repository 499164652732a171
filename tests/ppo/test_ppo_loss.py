"""The loss of a minibatch: how it is cut, what weighs it, what is in it, and what stops it.

float32; whole runs that differ in the order of sums alone are compared to rel 1e-3, abs 1e-5, through 4 Adam steps.
"""

import pytest
import torch
from compare_weights import same, weights

from align import ops
from align.advantages.dr_grpo import DrGRPO
from align.advantages.grpo import GRPO
from align.advantages.reinforce_pp import ReinforcePP
from align.advantages.rloo import RLOO
from align.errors import AlignError
from align.policy_losses.clip import Clip
from align.policy_losses.clip_higher import ClipHigher
from align.policy_losses.dual_clip import DualClip
from align.policy_losses.gspo import GSPO
from align.types import Scored

HOW = ["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "fixed_length"]
COMPARED = ("loss/policy_avg", "loss/value_avg", "grad_norm/actor", "grad_norm/critic", "objective/kl")


class Even:
    """Share of even token ids."""

    wants = frozenset()

    def __call__(self, rollout, texts, state):
        liked = (rollout.response_ids_BT % 2 == 0) & rollout.response_mask_BT
        return Scored(liked.sum(1) / rollout.response_mask_BT.sum(1), {})


def uneven(tokenizer) -> tuple[int, ...]:
    """Stop tokens that end a completion after a few tokens, each after another number."""
    return tuple(range(0, len(tokenizer), 6))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_do_not_change_the_result(make_ppo, rows, tokenizer, how, size):
    options = {"loss_aggregation": how, "stop_ids": uneven(tokenizer), "kl_in": "loss", "reward": Even()}
    whole, split = make_ppo(micro_batch_size=8, **options), make_ppo(micro_batch_size=size, **options)
    for _ in range(2):
        a, b = whole.step(rows), split.step(rows)
        assert torch.equal(whole.last[0].response_ids_BT, split.last[0].response_ids_BT)
        for name in (*COMPARED, "loss/kl_avg"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name
    assert len(set(whole.last[0].response_mask_BT.sum(1).tolist())) > 2


@pytest.mark.parametrize("how", HOW)
def test_the_losses_are_aggregates_of_the_whole_minibatch(make_ppo, rows, tokenizer, how):
    """One optimizer step: `loss/value_avg` is the plain aggregate of the whole batch, untrimmed."""
    ppo = make_ppo(
        micro_batch_size=3, minibatches=1, epochs=1, loss_aggregation=how, stop_ids=uneven(tokenizer), reward=Even()
    )
    seen = []
    update = ppo.update
    ppo.update = lambda experience: (seen.append(experience), update(experience))[1]
    metrics = ppo.step(rows)
    (e,) = seen
    loss_BT = 0.5 * (e.old.value_BT - e.return_BT).square()  # the critic has not moved yet
    expected = ops.aggregate(loss_BT, e.rollout.loss_mask_BT, how, length=12)
    assert metrics["loss/value_avg"] == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert metrics["loss/policy_avg"] == pytest.approx(
        float(ops.aggregate(-e.advantage_BT, e.rollout.loss_mask_BT, how, length=12)), rel=1e-3, abs=1e-5
    )


def test_kl_in_the_loss_is_not_in_the_reward_and_has_a_gradient(make_ppo, rows):
    """With advantages of 0 the KL alone moves the policy: back towards the reference."""
    ppo = make_ppo(learning_rate=1e-2, kl_in="loss", kl_coef=1.0, reward=Even())
    for _ in range(3):
        ppo.kl_coef = 0.0
        metrics = ppo.step(rows)
    assert "loss/kl_avg" not in metrics
    rollout, scored = ppo.last
    before = ppo.roles.score(rollout, {"logp", "ref_logp", "value"})
    experience, metrics = ppo.experience(rollout, before, scored)
    assert metrics["objective/non_score_reward"] == 0
    ppo.kl_coef = 1.0
    experience.advantage_BT = torch.zeros_like(experience.advantage_BT)
    assert ppo.update(experience)["loss/kl_avg"] > 0
    after = ppo.roles.score(rollout, {"logp", "ref_logp"})

    def k3(scores):
        return float(ops.kl(scores.logp_BT, scores.ref_logp_BT, "k3")[rollout.response_mask_BT].mean())

    assert k3(after) < 0.9 * k3(before)


def shifted(ppo, shift):
    """The engine says of every token that it is exp(-shift) times as likely as the trainer finds."""
    generate = ppo.engine.generate

    def wrong(*args):
        generation = generate(*args)
        generation.logp_BT = torch.where(generation.mask_BT, generation.logp_BT - shift, 0.0)
        return generation

    ppo.engine.generate = wrong
    return ppo


def test_the_gap_between_engine_and_trainer_is_told(make_ppo, rows):
    metrics = shifted(make_ppo(), 0.2).step(rows)
    assert metrics["val/engine_logp_gap"] == pytest.approx(0.2, abs=1e-4)
    assert metrics["val/engine_logp_gap_mean"] == pytest.approx(0.2, abs=1e-4)
    assert metrics["val/engine_logp_gap_share"] == 1
    assert "val/importance_weight" not in metrics
    assert shifted(make_ppo(), 0.05).step(rows)["val/engine_logp_gap_share"] == 0


def watch(ppo):
    """What the roles are asked for, a set for each call."""
    wanted, score = [], ppo.roles.score
    ppo.roles.score = lambda rollout, want: (wanted.append(want), score(rollout, want))[1]
    return wanted


@pytest.mark.parametrize("critic", ["own", "adapter", "head"])
def test_an_exact_engine_spares_the_trainer_its_pass(make_ppo, rows, critic):
    """auto with rollout=hf in float32: the step of old_logp=trainer, within float32, without scoring the actor."""
    options = {"critic": critic, "stop_ids": (1,), "temperature": 0.8}
    wanted, steps = [], []
    for ppo in (make_ppo(**options), make_ppo(old_logp="trainer", **options)):
        wanted.append(watch(ppo))
        ppo.step(rows)  # which looks whether the engine's are the trainer's
        steps.append(ppo.step(rows))
    both = {"ref_logp", "value", "logp"}
    assert wanted == [[both, {"ref_logp", "value"}], [both, both]]
    quick, slow = ({k: v for k, v in step.items() if "second" not in k} for step in steps)
    assert {name for name in slow.keys() - quick.keys()} == {name for name in slow if "engine_logp_gap" in name}
    assert quick == pytest.approx({name: slow[name] for name in quick}, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("options", [{"importance_correction": "token"}, {"old_logp": "trainer"}])
def test_the_trainer_is_asked_where_it_is_needed(make_ppo, rows, options):
    ppo = make_ppo(**options)
    wanted = watch(ppo)
    for _ in range(2):
        ppo.step(rows)
    assert all("logp" in want for want in wanted)


def test_an_engine_that_differs_is_not_trusted(make_ppo, rows):
    """By 0.002 a token: the trainer's numbers are taken, in every step, and it is said."""
    ppo = shifted(make_ppo(epochs=1, minibatches=1), 0.002)
    wanted = watch(ppo)
    with pytest.warns(UserWarning, match=r"ppo\.old_logp=auto takes the trainer's"):
        assert ppo.step(rows)["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert ppo.step(rows)["val/engine_logp_gap"] == pytest.approx(0.002, abs=1e-4)
    assert all("logp" in want for want in wanted)


def test_a_step_without_tokens_shows_nothing(make_ppo, rows):
    ppo = shifted(make_ppo(), 0.002)
    generate = ppo.engine.generate

    def empty(*args):
        generation = generate(*args)
        generation.mask_BT = torch.zeros_like(generation.mask_BT)
        return generation

    ppo.engine.generate = empty
    ppo.step(rows)
    ppo.engine.generate = generate
    with pytest.warns(UserWarning, match="takes the trainer's"):
        ppo.step(rows)


def test_an_engine_below_float32_is_not_exact(make_ppo):
    ppo = make_ppo()
    assert ppo.engine.exact
    ppo.roles.actor.engine.module.autocast = True
    assert not ppo.engine.exact
    ppo.roles.actor.engine.module.autocast = False
    ppo.roles.actor.model.bfloat16()
    assert not ppo.engine.exact


def test_the_ratio_starts_from_the_engine_if_told_to(make_ppo, rows):
    settings = {"epochs": 1, "minibatches": 1}
    assert shifted(make_ppo(**settings), 0.1).step(rows)["val/ratio"] == pytest.approx(1, abs=1e-5)
    metrics = shifted(make_ppo(old_logp="engine", **settings), 0.1).step(rows)
    assert metrics["val/ratio"] == pytest.approx(float(torch.tensor(0.1).exp()), abs=1e-4)
    assert metrics["policy/approxkl_avg"] == pytest.approx(0.005, abs=1e-4)


@pytest.mark.parametrize(("how", "weight"), [("truncate", 1.2), ("mask", 0.0)])
def test_importance_weights_scale_the_loss_of_the_policy_alone(make_ppo, rows, how, weight):
    """Every token's weight is exp(0.5), above the cap of 1.2: losses are scaled by 1.2, or are 0."""
    options = {"epochs": 1, "minibatches": 1, "reward": Even(), "max_grad_norm": 0.0}
    plain = shifted(make_ppo(**options), 0.5).step(rows)
    corrected = make_ppo(importance_correction="token", importance_how=how, importance_cap=1.2, **options)
    metrics = shifted(corrected, 0.5).step(rows)
    assert metrics["grad_norm/actor"] == pytest.approx(weight * plain["grad_norm/actor"], rel=1e-4)
    assert plain["grad_norm/actor"] > 0.01
    assert metrics["loss/value_avg"] == plain["loss/value_avg"]
    assert metrics["val/importance_weight"] == pytest.approx(weight) == metrics["val/importance_weight_max"]


def test_importance_weights_of_sequences_do_not_depend_on_micro_batches(make_ppo, rows, tokenizer):
    options = {"importance_correction": "sequence", "stop_ids": uneven(tokenizer), "reward": Even()}
    whole = shifted(make_ppo(micro_batch_size=8, **options), 0.05)
    split = shifted(make_ppo(micro_batch_size=1, **options), 0.05)
    a, b = whole.step(rows), split.step(rows)
    for name in (*COMPARED, "val/importance_weight"):
        assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name
    lengths = whole.last[0].response_mask_BT.sum(1).float()
    assert a["val/importance_weight_max"] == pytest.approx(min(float((0.05 * lengths).exp().max()), 2.0), rel=1e-3)


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_a_loss_that_is_not_finite_stops_before_the_step(make_ppo, rows, role):
    """In the second micro-batch of the second step, which has no optimizer step before it."""
    ppo = make_ppo(minibatches=1, epochs=1)
    ppo.step(rows)
    before = {r: weights(ppo.roles.group(r).backbone) for r in ("actor", "critic")}
    experience = ppo.experience

    def broken(rollout, old, scored):
        made, metrics = experience(rollout, old, scored)
        shortest = int(rollout.length_B().argsort(descending=True, stable=True)[-1])  # in the last micro-batch
        {"actor": old.logp_BT, "critic": old.value_BT}[role][shortest, 0] = torch.nan
        return made, metrics

    ppo.experience = broken
    with pytest.raises(AlignError) as error:
        ppo.step(rows)
    for word in ("PPO step 2", "minibatch 1", "micro-batch 2", f"loss of the {role} is nan", f"{role}.learning_rate"):
        assert word in str(error.value)
    for r, was in before.items():
        assert all(same(was, weights(ppo.roles.group(r).backbone)).values())


def test_an_infinite_score_is_traced_to_the_reward(make_ppo, rows):
    class Infinite(Even):
        def __call__(self, rollout, texts, state):
            return Scored(torch.full((len(rollout),), torch.inf), {})

    with pytest.raises(AlignError, match=r"PPO step 1.*(\n.*)*what the reward gives"):
        make_ppo(reward=Infinite()).step(rows)


def test_a_gradient_that_is_not_finite_names_step_and_minibatch(make_ppo, rows):
    ppo = make_ppo(minibatches=2, epochs=1)
    before = weights(ppo.roles.group("actor").backbone)

    class Steep:
        """Finite in value, infinite in slope."""

        def __call__(self, logp_BT, old_logp_BT, advantage_BT, mask_BT):
            return (logp_BT - logp_BT.detach()).clamp(min=0).sqrt()

    ppo.policy_loss = Steep()
    with pytest.raises(AlignError, match=r"PPO step 1, epoch 1, minibatch 1.*actor.*\n.*learning_rate"):
        ppo.step(rows)
    assert all(same(before, weights(ppo.roles.group("actor").backbone)).values())


def test_a_loss_of_the_users_own_trains(make_ppo, rows):
    """REINFORCE, -A log p: at the first step its gradient is that of the clipped loss."""
    own, ours = (make_ppo(epochs=1, minibatches=1) for _ in range(2))
    own.policy_loss = lambda logp_BT, old_logp_BT, advantage_BT, mask_BT: -advantage_BT * logp_BT
    a, b = own.step(rows), ours.step(rows)
    assert a["grad_norm/actor"] == pytest.approx(b["grad_norm/actor"], rel=1e-4)


LEARNERS = {
    "rloo": (RLOO(), Clip(0.2), {}),
    "grpo": (GRPO(), Clip(0.2), {"kl_in": "loss", "loss_aggregation": "sequence_mean_token_mean"}),
    "dr_grpo": (DrGRPO(), Clip(0.2), {"loss_aggregation": "fixed_length"}),
    "reinforce_pp": (ReinforcePP(1.0), Clip(0.2), {}),
    "clip_higher": (GRPO(), ClipHigher(0.2, 0.28), {}),
    "dual_clip": (GRPO(), DualClip(0.2, 3.0), {}),
    "gspo": (GRPO(), GSPO(0.01, 0.02), {"loss_aggregation": "sequence_mean_token_mean"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_each_advantage_and_each_loss_raises_the_score(make_ppo, rows, name):
    advantage, loss, options = LEARNERS[name]
    ppo = make_ppo(
        reward=Even(), critic=False, learning_rate=1e-2, kl_coef=0.001, samples=8, micro_batch_size=64, **options
    )
    ppo.advantage, ppo.policy_loss = advantage, loss
    scores = [ppo.step(rows)["objective/scores"] for _ in range(20)]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.1
