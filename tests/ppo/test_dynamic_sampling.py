"""Prompts whose samples score alike are replaced by others. float32; what is only copied is equal to the bit."""

import dataclasses

import pytest
import torch
from compare_weights import same, weights

from align.errors import AlignError
from align.ppo.rollouts import as_rows, further
from align.ppo.sampling import joined
from align.rewards.by_column import ByColumn
from align.rewards.gate import Gate
from align.rewards.sum import SumReward
from align.types import Scored

SAMPLES = 2


class Odd:
    """Differs between the samples of an odd row; an even row's score alike."""

    wants = frozenset()

    def __call__(self, rollout, texts, state):
        state.log_metric("rows", len(rollout))
        tells_B = rollout.row_B % 2 == 1
        score_B = torch.where(tells_B, rollout.sample_B.float() + 1, 5.0)
        return Scored(score_B, {"odd": tells_B.float()})


@pytest.fixture
def many(tokenizer):
    words = "a red kite flies over the quiet harbour while seven old sailors count their ropes".split()
    return as_rows([{"prompt": " ".join(words[: i + 1]), "topic": f"t{i}"} for i in range(len(words))], tokenizer)


def make(make_ppo, **options):
    return make_ppo(critic=False, samples=SAMPLES, reward=Odd(), **options)


def rows_of(ppo):
    return ppo.last[0].row_B.tolist()


def twice(*numbers):
    return [number for number in numbers for _ in range(SAMPLES)]


def test_alike_prompts_are_replaced_in_the_order_that_they_are_drawn(make_ppo, many):
    ppo = make(make_ppo, dynamic_sampling=3)
    batches = iter([[many[6], many[5], many[8], many[7]], [many[9], many[10], many[11], many[12]], many[:1]])
    metrics = ppo.step(many[1:5], batches)
    # 1 and 3 of the batch, 5 and 7 of the next one: enough
    assert rows_of(ppo) == twice(1, 3, 5, 7)
    assert metrics["rollout/extra_batches"] == 1 and metrics["rollout/alike_share"] == 0.5
    assert metrics["rollout/scores"] == (1.5 + 5) / 2 and metrics["objective/scores"] == 1.5
    assert metrics["rewards/odd/mean"] == 1.0 and metrics["rows"] == 8
    assert next(batches)[0] is many[9]


def test_a_group_that_differs_in_penalties_alone_is_alike(make_ppo, many):
    """Every prompt's samples are of unlike length here, and only an odd row's differ in score."""

    class Shorter:
        wants = frozenset()
        is_penalty = True

        def __call__(self, rollout, texts, state):
            return Scored(-0.3 * rollout.sample_B.float())

    for reward in (
        SumReward({"odd": Odd(), "short": Shorter()}, {"short": 0.7}),
        SumReward({"both": SumReward({"odd": Odd(), "short": Shorter()})}, normalize="batch"),
        ByColumn("topic", {"default": SumReward({"odd": Odd(), "short": Shorter()})}),
        Gate(SumReward({"odd": Odd(), "short": Shorter()}), Odd(), threshold=-1.0),
    ):
        ppo = make_ppo(critic=False, samples=SAMPLES, reward=reward, dynamic_sampling=3)
        metrics = ppo.step(many[1:5], iter([[many[6], many[5], many[8], many[7]]]))
        assert rows_of(ppo) == twice(1, 3, 5, 7) and metrics["rollout/alike_share"] == 0.5


def test_alike_prompts_fill_the_batch_where_the_bound_is_reached(make_ppo, many):
    ppo = make(make_ppo, dynamic_sampling=2)
    metrics = ppo.step(many[0:4:2] + many[1:2], [[many[4]], [many[3]], [many[5]]])
    assert rows_of(ppo) == twice(1, 3, 0) and metrics["rollout/extra_batches"] == 2
    metrics = ppo.step(many[0:2], [])
    assert rows_of(ppo) == twice(0, 1) and metrics["rollout/extra_batches"] == 0


def test_nothing_is_drawn_without_need_or_leave(make_ppo, many):
    def never():
        raise AssertionError("drawn")
        yield

    for ppo, batch in ((make(make_ppo), many[:4]), (make(make_ppo, dynamic_sampling=1), many[1:8:2])):
        metrics = ppo.step(batch, never())
        assert rows_of(ppo) == twice(*(row.number for row in batch)) and metrics["rollout/extra_batches"] == 0
    assert "rollout/alike_share" not in make_ppo().step(many[:2], never())


def test_a_step_that_draws_nothing_is_the_step_without_dynamic_sampling(make_ppo, many):
    on, off = make(make_ppo, dynamic_sampling=3), make(make_ppo)
    for ppo in (on, off):
        ppo.step(many[1:8:2])
    one, other = weights(on.roles.actor.engine.module), weights(off.roles.actor.engine.module)
    assert all(same(one, other).values())


def test_a_prompt_gets_the_same_completions_wherever_it_is_drawn(make_ppo, many):
    ppo, twin = make(make_ppo, dynamic_sampling=1), make(make_ppo)
    ppo.step(many[0:1] + many[1:2], [many[3:4]])
    twin.step(many[3:4] + many[1:2])
    one, other = (loop.last[0] for loop in (ppo, twin))
    assert one.row_B.tolist() == twice(1, 3) and other.row_B.tolist() == twice(3, 1)
    swapped = other[torch.tensor([2, 3, 0, 1])]
    assert [row[mask].tolist() for row, mask in zip(one.response_ids_BT, one.response_mask_BT, strict=True)] == [
        row[mask].tolist() for row, mask in zip(swapped.response_ids_BT, swapped.response_mask_BT, strict=True)
    ]


def test_joined_is_what_would_have_been_written_at_once(make_ppo, many):
    """Prompts of 1 to 8 words, responses of any length. Scores to 1e-5: sums in another order."""
    ppo = make(make_ppo, old_logp="trainer", stop_ids=tuple(range(0, 700, 7)))
    short, long, whole = (ppo.sample(rows) for rows in (many[:2], many[6:8], many[:2] + many[6:8]))
    both = joined(short, long)
    for name in ("prompt_ids_BP", "prompt_mask_BP", "response_mask_BT", "row_B", "sample_B", "finished_B"):
        a, b = getattr(both.rollout, name), getattr(whole.rollout, name)
        if name == "prompt_ids_BP":
            a, b = (x.where(whole.rollout.prompt_mask_BP, 0) for x in (a, b))
        assert torch.equal(a, b), name
    real_BT = whole.rollout.response_mask_BT
    assert torch.equal(both.rollout.response_ids_BT[real_BT], whole.rollout.response_ids_BT[real_BT])
    for record in ("rollout", "scores"):
        for name, value in vars(getattr(whole, record)).items():
            if name in ("logp_BT", "ref_logp_BT"):
                torch.testing.assert_close(getattr(getattr(both, record), name), value, rtol=0, atol=1e-5)
    assert both.rollout.columns == whole.rollout.columns and both.tokens == whole.tokens
    assert torch.equal(both.scored.score_B, whole.scored.score_B) and both.scored.terms.keys() == {"odd"}


def test_a_term_that_one_part_lacks_has_no_opinion_there(make_ppo, many):
    ppo = make(make_ppo)
    a, b = ppo.sample(many[:1]), ppo.sample(many[1:2])
    b = dataclasses.replace(b, scored=Scored(b.scored.score_B, {"new": b.scored.score_B}), logged={"x": 1.0})
    both = joined(a, b)
    assert both.scored.terms["new"].isnan().tolist() == [True, True, False, False]
    assert both.scored.terms["odd"].isnan().tolist() == [False, False, True, True]
    assert both.logged == {"rows": 2.0, "x": 1.0}


def test_further_rows_are_all_others_in_an_order_of_the_steps_own(many):
    def numbers(step, batch=many[:4], seed=0):
        return [[row.number for row in part] for part in further(many, batch, 4, seed, step)]

    first = numbers(step=1)
    assert [len(part) for part in first] == [4, 4, 3]
    assert sorted(number for part in first for number in part) == list(range(4, 15))
    assert first == numbers(step=1) and first != numbers(step=2) and first != numbers(step=1, seed=1)
    assert numbers(step=1, batch=many) == []


def test_samples_of_a_prompt_are_needed(make_ppo):
    with pytest.raises(AlignError, match=r"use rollout\.samples_per_prompt=4, or ppo\.dynamic_sampling=0"):
        make_ppo(dynamic_sampling=1)
