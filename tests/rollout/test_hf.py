"""Rollouts by transformers. Shapes: B rows, T response, V vocabulary."""

from __future__ import annotations

import pytest
import torch

from align import ops
from align.engine.plain import PlainEngine
from align.roles.backbone import Backbone
from align.roles.policy import TrainedPolicy
from align.rollout.hf import HFRollout, KeyedSampler, to_generation
from align.rollout.keys import sample_key
from align.types import Sampling

PROMPTS = [[5, 300, 7], [260, 261, 262, 263, 264, 265, 266], [100], [40, 41, 42, 43]]
KEYS = [sample_key(0, "test", 0, row, 0) for row in range(len(PROMPTS))]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(lora_model) -> TrainedPolicy:
    model = lora_model()
    return TrainedPolicy(model, PlainEngine(Backbone(model), 1e-3), CPU)


@pytest.fixture(scope="module")
def engine(policy) -> HFRollout:
    rollout = HFRollout(pad_id=0)
    rollout.attach(policy)
    return rollout


def sampling(stop: tuple[int, ...] = (1,), tokens: int = 12, **more) -> Sampling:
    return Sampling(**{"temperature": 1.0, "max_new_tokens": tokens, "stop_ids": stop, **more})


def test_keyed_noise_samples_the_softmax():
    """Chi-square over 6,000 keys, 11 degrees of freedom: 31.3 is exceeded by chance once in a thousand."""
    draws, size = 6000, 12
    scores_V = torch.linspace(-2.0, 2.0, size)
    keys = [sample_key(0, "chi", 0, row, 0) for row in range(draws)]
    sampler = KeyedSampler(keys, sampling(temperature=0.8), CPU)
    chosen_B, logp_B = sampler.draw(scores_V.expand(draws, size))
    expected_V = (scores_V / 0.8).softmax(0) * draws
    seen_V = torch.bincount(chosen_B, minlength=size)
    assert float(((seen_V - expected_V) ** 2 / expected_V).sum()) < 31.3
    torch.testing.assert_close(logp_B, (scores_V / 0.8).log_softmax(0)[chosen_B])


def test_a_row_gets_the_same_tokens_alone_and_in_any_batch(policy, engine):
    together = engine.generate(PROMPTS, KEYS, sampling())
    small = HFRollout(pad_id=0, batch_size=3)
    small.attach(policy)
    parted = small.generate(PROMPTS[::-1], KEYS[::-1], sampling())
    for row, (prompt, key) in enumerate(zip(PROMPTS, KEYS, strict=True)):
        alone = engine.generate([prompt], [key], sampling())
        real = together.mask_BT[row]
        assert alone.response_ids_BT[0].tolist() == together.response_ids_BT[row][real].tolist()
        assert parted.response_ids_BT.flip(0)[row][: real.sum()].tolist() == alone.response_ids_BT[0].tolist()


def test_the_side_of_padding_does_not_move_logp(engine):
    """float32, sums in another order: 1e-5."""
    together = engine.generate(PROMPTS, KEYS, sampling())
    for row, (prompt, key) in enumerate(zip(PROMPTS, KEYS, strict=True)):
        alone = engine.generate([prompt], [key], sampling())
        torch.testing.assert_close(alone.logp_BT[0], together.logp_BT[row][together.mask_BT[row]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("greedy", [False, True])
def test_logp_is_that_of_a_forward_pass_without_cache(policy, engine, temperature, greedy):
    """float32, one row at a time without padding: 1e-5."""
    generation = engine.generate(PROMPTS, KEYS, sampling(temperature=temperature, greedy=greedy))
    for row, prompt in enumerate(PROMPTS):
        ids = generation.response_ids_BT[row][generation.mask_BT[row]]
        with torch.no_grad():
            logits = policy.model(torch.tensor([[*prompt, *ids.tolist()]]), use_cache=False).logits
        logp = ops.logprobs(logits[:, len(prompt) - 1 : -1], ids[None], temperature)
        torch.testing.assert_close(generation.logp_BT[row][: len(ids)], logp[0], atol=1e-5, rtol=0)


def test_two_keys_of_one_prompt_differ(engine):
    generation = engine.generate([PROMPTS[0]] * 2, KEYS[:2], sampling())
    assert generation.response_ids_BT[0].tolist() != generation.response_ids_BT[1].tolist()


def test_the_models_own_generation_config_does_not_slip_in(policy, engine):
    before = engine.generate(PROMPTS, KEYS, sampling())
    config = policy.model.get_base_model().generation_config
    config.repetition_penalty, config.max_length, config.suppress_tokens = 5.0, 6, list(range(200))
    config.eos_token_id = [1, *before.response_ids_BT[:, 0].tolist()]
    try:
        after = engine.generate(PROMPTS, KEYS, sampling())
        assert policy.model.get_base_model().generation_config is config
    finally:
        config.repetition_penalty, config.max_length, config.suppress_tokens = 1.0, 20, None
        config.eos_token_id = 1
    assert torch.equal(before.response_ids_BT, after.response_ids_BT)
    assert torch.equal(before.logp_BT, after.logp_BT)


def test_every_stop_id_ends_a_response_and_stays_in_it(engine):
    free = engine.generate(PROMPTS, KEYS, sampling(stop=(1,)))
    assert not free.finished_B.any() and free.mask_BT.all()
    ends = {row: int(free.response_ids_BT[row, 2 + row]) for row in range(len(PROMPTS))}
    stopped = engine.generate(PROMPTS, KEYS, sampling(stop=(1, *ends.values())))
    assert stopped.finished_B.all()
    for row in range(len(PROMPTS)):
        ids = free.response_ids_BT[row].tolist()
        length = min(i for i, token in enumerate(ids) if token in ends.values()) + 1
        assert stopped.response_ids_BT[row][stopped.mask_BT[row]].tolist() == ids[:length]


def test_responses_are_cut_after_the_first_stop_and_padded_on_the_right():
    """Worked by hand."""
    responses = [
        (torch.tensor([4, 9, 5, 9]), -torch.arange(1.0, 5.0)),
        (torch.tensor([4]), torch.tensor([-0.5])),
    ]
    generation = to_generation(responses, sampling(stop=(8, 9)), pad_id=0, version=3)
    assert generation.response_ids_BT.tolist() == [[4, 9], [4, 0]]
    assert generation.mask_BT.tolist() == [[True, True], [True, False]]
    assert generation.logp_BT.tolist() == [[-1.0, -2.0], [-0.5, 0.0]]
    assert generation.finished_B.tolist() == [True, False]
    assert generation.version_B.tolist() == [3, 3]
