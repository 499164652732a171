"""One PPO step: what it must be at the start, what it counts, what it leaves alone."""

import pytest
import torch
from compare_weights import same, weights
from torch import nn

from align.advantages.gae import GAE
from align.errors import AlignError
from align.peft.adapters import use_adapter
from align.ppo.rollouts import as_rows
from align.stages.ppo.stage import key_figures
from align.types import Scored


def test_policy_and_reference_agree_at_step_0(make_ppo, rows):
    metrics = make_ppo().step(rows)
    assert metrics["objective/kl"] == pytest.approx(0, abs=1e-6)


def test_policy_and_reference_agree_at_step_0_in_full_fine_tuning(make_ppo, rows):
    metrics = make_ppo(peft=None).step(rows)
    assert metrics["objective/kl"] == pytest.approx(0, abs=1e-6)


def test_policy_and_reference_agree_at_step_0_when_an_adapter_goes_on(make_ppo, rows, lora_model, base, tmp_path):
    """The reference is the trained adapter then, not the base: KL to the base is far from 0."""
    model = lora_model(seed=3)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(tmp_path / "sft")
    ppo = make_ppo(path=str(tmp_path / "sft"), stop_ids=(1,), old_logp="trainer")
    assert ppo.step(rows)["objective/kl"] == pytest.approx(0, abs=1e-6)
    with use_adapter(ppo.roles.actor.model, None):
        plain = ppo.roles.score(ppo.last[0], {"logp"})
    scores = ppo.roles.score(ppo.last[0], {"ref_logp"})
    assert (scores.ref_logp_BT - plain.logp_BT).abs().max() > 0.1


def test_the_reference_does_not_move_by_a_bit_while_the_policy_trains(make_ppo, rows):
    ppo = make_ppo()
    ppo.step(rows)
    rollout, _ = ppo.last
    before = ppo.roles.score(rollout, {"logp", "ref_logp"})
    for _ in range(3):
        ppo.step(rows)
    after = ppo.roles.score(rollout, {"logp", "ref_logp"})
    assert torch.equal(before.ref_logp_BT, after.ref_logp_BT)
    assert not torch.equal(before.logp_BT, after.logp_BT)


def test_the_ratio_is_one_at_the_first_micro_batch(make_ppo, rows):
    """Old log-probabilities by the trainer, or by an engine on its own weights. fp32."""
    for source in ("trainer", "auto"):
        ppo = make_ppo(epochs=1, minibatches=1, old_logp=source)
        assert ppo.step(rows)["val/ratio"] == pytest.approx(1, abs=1e-5)


def test_engine_and_trainer_give_the_same_log_probabilities(make_ppo, rows):
    ppo = make_ppo(temperature=0.7, old_logp="trainer")
    assert ppo.step(rows)["val/engine_logp_gap"] < 1e-4


def test_a_prompt_without_tokens_is_refused(tokenizer):
    with pytest.raises(AlignError, match=r"prompt 1 \(''\) has no tokens"):
        as_rows([{"prompt": "hi"}, {"prompt": ""}], tokenizer)


def test_optimizer_steps_are_epochs_times_minibatches(make_ppo, rows):
    ppo = make_ppo(epochs=3, minibatches=4, micro_batch_size=1)
    ppo.step(rows)
    for group in ppo.roles.groups:
        if not group.trained:
            continue
        state = next(iter(group.engine.optimizer.state.values()))
        assert int(state["step"]) == 12
    assert ppo.roles.actor.version == 12


@pytest.mark.parametrize("size", [1, 2, 8])
def test_micro_batches_do_not_change_the_result(make_ppo, rows, size):
    """Reference: one micro-batch a minibatch. fp32; 1e-5 for sums in another order, through 4 Adam steps."""
    whole, split = make_ppo(micro_batch_size=8), make_ppo(micro_batch_size=size)
    for _ in range(2):
        a, b = whole.step(rows), split.step(rows)
        assert torch.equal(whole.last[0].response_ids_BT, split.last[0].response_ids_BT)
        for name in ("loss/policy_avg", "loss/value_avg", "grad_norm/actor", "grad_norm/critic", "objective/kl"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name


def test_gradient_clipping_does_what_it_says(make_ppo, rows):
    """Adam's first step hides the gradient's size, so look at what reaches the optimizer."""
    ppo = make_ppo(max_grad_norm=0.0)
    engine = ppo.roles.actor.engine
    engine.max_grad_norm = 1e-3
    seen = []
    step = engine.optimizer.step
    engine.optimizer.step = lambda: (
        seen.append(nn.utils.get_total_norm([p.grad for p in engine.module.trained("actor")])),
        step(),
    )
    norm = ppo.step(rows)["grad_norm/actor"]
    assert norm > 1e-3
    assert all(float(n) == pytest.approx(1e-3, rel=1e-3) for n in seen)


def test_only_adapters_and_value_head_train(make_ppo, rows):
    ppo = make_ppo()
    actor, critic = ppo.roles.group("actor").backbone, ppo.roles.group("critic").backbone
    before = weights(actor), weights(critic)
    ppo.step(rows)
    moved_actor = [n for n, same_ in same(before[0], weights(actor)).items() if not same_]
    moved_critic = [n for n, same_ in same(before[1], weights(critic)).items() if not same_]
    assert moved_actor and all(".default." in name for name in moved_actor)
    assert {"value_head.weight", "value_head.bias"} <= set(moved_critic)
    assert all(".default." in name or name.startswith("value_head.") for name in moved_critic)


def test_dropout_is_off_in_every_role(make_ppo, rows, lora):
    lora.lora_dropout = 0.5
    ppo = make_ppo(peft=lora, epochs=1, minibatches=1)
    modules = [*(m for group in ppo.roles.groups for m in group.backbone.modules())]
    assert not any(m.training for m in modules if isinstance(m, nn.Dropout) and m.p > 0)
    assert ppo.step(rows)["val/ratio"] == pytest.approx(1, abs=1e-5)


def test_a_completion_without_eos_pays_the_penalty_in_its_reward_and_not_in_its_score(make_ppo, rows, tokenizer):
    """The score is a tenth of the length; fp32, 1e-5 for sums over 12 tokens."""
    every = tuple(range(len(tokenizer)))
    plain = make_ppo(missing_eos_penalty=0.5)
    ended = make_ppo(missing_eos_penalty=0.5, stop_ids=every)
    for ppo in (plain, ended):
        metrics = ppo.step(rows)
        rollout, scored = ppo.last
        score_B = rollout.response_mask_BT.sum(1).float() / 10
        torch.testing.assert_close(scored.score_B, score_B)
        assert metrics["objective/scores"] == pytest.approx(float(score_B.mean()), abs=1e-6)
        penalty = 0.5 * float((~rollout.finished_B).float().mean()) + ppo.kl_coef * metrics["objective/kl"]
        assert metrics["objective/rlhf_reward"] == pytest.approx(float(score_B.mean()) - penalty, abs=1e-5)
        assert metrics["objective/non_score_reward"] == pytest.approx(-penalty, abs=1e-5)
    assert not plain.last[0].finished_B.all() and ended.last[0].finished_B.all()


def test_the_stop_token_is_written_by_the_policy_and_trained(make_ppo, rows, tokenizer):
    ppo = make_ppo(stop_ids=tuple(range(len(tokenizer))))
    ppo.step(rows)
    rollout, _ = ppo.last
    assert rollout.response_mask_BT.sum(1).tolist() == [1] * 8
    assert rollout.loss_mask_BT.all()


class Even:
    """Share of even token ids."""

    wants = frozenset()

    def __call__(self, rollout, texts, state):
        liked = (rollout.response_ids_BT % 2 == 0) & rollout.response_mask_BT
        return Scored(liked.sum(1) / rollout.response_mask_BT.sum(1), {})


class Opinion:
    """A reward without an opinion on some rows."""

    wants = frozenset()

    def __init__(self, known):
        self.known = torch.tensor(known)

    def __call__(self, rollout, texts, state):
        score_B = torch.where(self.known, rollout.response_ids_BT[:, 0].float() / 100, float("nan"))
        return Scored(score_B, {})


def test_a_batch_without_a_score_has_no_figure_of_scores(make_ppo, rows):
    metrics = make_ppo(reward=Opinion([False] * 8)).step(rows)
    assert metrics["objective/unscored"] == 8
    assert not {"objective/scores", "objective/rlhf_reward", "objective/non_score_reward"} & metrics.keys()
    assert key_figures(metrics).startswith("no score  KL ")


def test_rows_without_a_score_do_not_train(make_ppo, rows):
    """Their gradient is none: training on the other rows alone gives the same weights. fp32, 1e-6."""
    known = [True, True, False, True, False, True, True, False]
    some = make_ppo(reward=Opinion(known), epochs=1, minibatches=1)
    metrics = some.step(rows)
    assert metrics["objective/unscored"] == 3
    few = make_ppo(reward=Opinion([True] * 5), epochs=1, minibatches=1)
    kept = [i for i, k in enumerate(known) if k]
    samples = some.last[0][torch.tensor(kept)]
    scores = few.roles.score(samples, {"logp", "ref_logp", "value"})
    scored, _ = few.score_texts(samples, scores)
    few.update(few.experience(samples, scores, scored)[0])
    one, other = weights(some.roles.actor.engine.module), weights(few.roles.actor.engine.module)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)


def test_a_step_in_which_nothing_is_scored_is_skipped(make_ppo, rows):
    ppo = make_ppo(reward=Opinion([False] * 8))
    before = weights(ppo.roles.actor.engine.module)
    metrics = ppo.step(rows)
    assert metrics["skipped"] == 1
    assert all(same(before, weights(ppo.roles.actor.engine.module)).values())


def test_a_reward_that_wants_what_no_role_gives_is_refused(make_ppo):
    class Greedy(Even):
        wants = frozenset({"beauty"})

    with pytest.raises(AlignError, match="beauty"):
        make_ppo(reward=Greedy())


def test_rewards_are_whitened_over_real_tokens_only(make_ppo, rows):
    ppo = make_ppo()
    ppo.step(rows)
    rollout, scored = ppo.last
    scores = ppo.roles.score(rollout, {"logp", "ref_logp", "value"})
    experience, _ = ppo.experience(rollout, scores, scored)
    advantage = experience.advantage_BT[experience.rollout.loss_mask_BT]
    assert float(advantage.mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantage.std()) == pytest.approx(1, abs=1e-4)
    assert isinstance(ppo.advantage, GAE)


def test_the_same_loop_runs_without_a_critic(make_ppo, rows):
    ppo = make_ppo(critic=False, samples=2, reward=Even())
    metrics = ppo.step(rows[:4])
    assert len(ppo.last[0]) == 8
    assert "loss/value_avg" not in metrics and "grad_norm/critic" not in metrics
    assert metrics["grad_norm/actor"] > 0


@pytest.mark.slow
def test_ppo_raises_the_score(make_ppo, rows):
    ppo = make_ppo(reward=Even(), learning_rate=1e-2, kl_coef=0.0, samples=8, micro_batch_size=64)
    scores = [ppo.step(rows)["objective/scores"] for _ in range(25)]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.1
