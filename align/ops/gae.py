"""Generalised advantage estimation over response tokens.

Shapes: B completions, T response tokens.
"""

import torch
from torch import Tensor


def gae(reward: Tensor, value: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """The advantage and the return of every real token, two float32 tensors of shape BT, 0 outside the mask.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, return = A + V (Schulman et al.
    2015, arXiv 1506.02438, equation 16). After the last real token the value is 0. t+1 is the next token
    inside the mask: what is carried passes tokens that the policy did not write (an observation between two
    turns) unchanged, as in verl and NeMo-RL. What stands outside the mask is never read.
    """
    reward_BT, value_BT, mask_BT = reward.float(), value.float(), mask
    advantage_BT = torch.zeros_like(reward_BT)
    next_advantage_B = next_value_B = reward_BT.new_zeros(len(reward_BT))
    for t in reversed(range(reward_BT.shape[1])):
        real_B = mask_BT[:, t]
        delta_B = reward_BT[:, t] + gamma * next_value_B - value_BT[:, t]
        next_advantage_B = torch.where(real_B, delta_B + gamma * lam * next_advantage_B, next_advantage_B)
        next_value_B = torch.where(real_B, value_BT[:, t], next_value_B)
        advantage_BT[:, t] = torch.where(real_B, next_advantage_B, 0.0)
    return advantage_BT, torch.where(mask_BT, advantage_BT + value_BT, 0.0)
