"""The numbers of RLHF: pure functions of tensors, float32 inside, each with its source.

Shapes: B completions, T response tokens, V vocabulary. A mask is boolean, True on real tokens.
Log-probabilities, entropies and KL are in nats.
"""

from align.ops.aggregate import aggregate
from align.ops.entropy import entropy
from align.ops.gae import gae
from align.ops.head_logprobs import head_logprobs
from align.ops.kl import kl
from align.ops.logprobs import logprobs
from align.ops.masked_mean import masked_mean
from align.ops.pairwise_loss import pairwise_loss
from align.ops.policy_loss import policy_loss
from align.ops.rloo import rloo
from align.ops.shape_rewards import shape_rewards
from align.ops.value_loss import value_loss
from align.ops.whiten import whiten

__all__ = [
    "aggregate",
    "entropy",
    "gae",
    "head_logprobs",
    "kl",
    "logprobs",
    "masked_mean",
    "pairwise_loss",
    "policy_loss",
    "rloo",
    "shape_rewards",
    "value_loss",
    "whiten",
]
