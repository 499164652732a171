"""Advantages without a critic: returns, whitened over the batch.

Shapes: B completions, T response tokens.
"""

import torch
from torch import Tensor

from align.ops.gae import gae
from align.ops.whiten import whiten


def reinforce_pp(reward_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0) -> Tensor:
    """The discounted sum of the rewards from each real token on, with mean 0 and variance 1 over all real tokens.

    Float32, shape BT, 0 outside the mask. REINFORCE++ (Hu et al. 2025, arXiv 2501.03262); the
    rewards hold the KL penalty. The variance is unbiased (verl; OpenRLHF: population). Tokens that the policy did
    not write are passed as in `gae`.
    """
    return_BT, _ = gae(reward_BT, torch.zeros_like(reward_BT), mask_BT, gamma, lam=1.0)
    return whiten(return_BT, mask_BT)
