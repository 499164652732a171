"""The numbers of RLHF: pure functions of tensors, float32 inside, each with its source.

Shapes: B completions, T response tokens, V vocabulary. A mask is boolean, True on real tokens.
Log-probabilities, entropies and KL are in nats.
"""

from align.ops.adaptive_kl import AdaptiveKL
from align.ops.aggregate import aggregate, counted
from align.ops.alike import alike
from align.ops.dpo_loss import dpo_loss
from align.ops.dr_grpo import dr_grpo
from align.ops.entropy import entropy
from align.ops.finite import first_not_finite
from align.ops.gae import gae
from align.ops.grpo import grpo
from align.ops.head_logprobs import head_logprobs
from align.ops.importance_weights import importance_weights
from align.ops.kl import kl
from align.ops.logprobs import logprobs
from align.ops.masked_mean import masked_mean
from align.ops.ordinal_loss import ordinal_loss
from align.ops.overlong_penalty import overlong_penalty
from align.ops.pairwise_loss import pairwise_loss
from align.ops.plackett_luce import plackett_luce
from align.ops.policy_loss import policy_loss
from align.ops.reinforce_pp import reinforce_pp
from align.ops.rloo import rloo
from align.ops.shape_rewards import shape_rewards
from align.ops.value_loss import value_loss
from align.ops.whiten import whiten

__all__ = [
    "AdaptiveKL",
    "aggregate",
    "alike",
    "counted",
    "dpo_loss",
    "dr_grpo",
    "entropy",
    "first_not_finite",
    "gae",
    "grpo",
    "head_logprobs",
    "importance_weights",
    "kl",
    "logprobs",
    "masked_mean",
    "ordinal_loss",
    "overlong_penalty",
    "pairwise_loss",
    "plackett_luce",
    "policy_loss",
    "reinforce_pp",
    "rloo",
    "shape_rewards",
    "value_loss",
    "whiten",
]
