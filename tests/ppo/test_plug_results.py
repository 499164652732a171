"""Results of plugs that have the wrong shape, and plugs without an attribute, are refused with the plug's name."""

from typing import ClassVar

import pytest
import torch

from align.advantages.gae import GAE
from align.errors import AlignError
from align.types import Scored


class Flat(GAE):
    """An advantage a completion, not a token."""

    def __call__(self, *given):
        advantage_BT, return_BT = super().__call__(*given)
        return advantage_BT.sum(1), return_BT


def one_number(logp_BT, old_logp_BT, advantage_BT, mask_BT):
    return -(logp_BT * advantage_BT).mean()


class Pairs:
    wants: ClassVar[set[str]] = set()

    def __call__(self, rollout, texts, state):
        return Scored(torch.zeros(len(rollout), 2))


class Wantless:
    def __call__(self, rollout, texts, state):
        return Scored(torch.zeros(len(rollout)))


def test_an_advantage_of_one_number_a_completion(make_ppo, rows):
    ppo = make_ppo()
    ppo.advantage = Flat(1.0, 0.95)
    with pytest.raises(AlignError, match=r"advantage=.*Flat: it returned a tensor of shape \(8,\).*\n  use a tensor"):
        ppo.step(rows)


def test_a_policy_loss_of_one_number_for_all_tokens(make_ppo, rows):
    ppo = make_ppo()
    ppo.policy_loss = one_number
    with pytest.raises(AlignError, match=r"policy_loss=one_number: it returned a tensor of shape \(\)"):
        ppo.step(rows)


def test_a_reward_of_two_numbers_a_completion(make_ppo, rows):
    with pytest.raises(AlignError, match=r"reward=.*Pairs: it returned a tensor of shape \(8, 2\) for a score"):
        make_ppo(reward=Pairs()).step(rows)


def test_a_reward_without_an_attribute_of_its_protocol(make_ppo):
    with pytest.raises(AlignError, match=r"reward=.*Wantless: it has no wants\n  use the attributes of align.types.R"):
        make_ppo(reward=Wantless())
