"""The loss of GSPO. Shapes: B completions, T response tokens."""

from dataclasses import MISSING

import torch
from torch import Tensor

from align import ops
from align.config.fields import number, section


@section("policy_loss")
class GSPO:
    """Group sequence policy optimisation: one ratio a completion, of its mean log-probability a token."""

    clip: float = number(MISSING, above=0)
    """Largest distance of a completion's ratio below 1 before it is clipped; it moves far less than a token's."""
    clip_high: float = number(MISSING, above=0)
    """Largest distance of it above 1."""

    def __call__(self, logp_BT: Tensor, old_logp_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Every token's loss is its completion's in value; the gradient flows through its own log-probability.

        Zheng et al. 2025 (arXiv 2507.18071), the token form: ratio_t = sg(ratio of the completion) p_t / sg(p_t).
        The paper's mean is ppo.loss_aggregation=sequence_mean_token_mean.
        """
        log_ratio_BT = torch.where(mask_BT, logp_BT.float() - old_logp_BT.float(), 0.0).detach()
        mean_B1 = log_ratio_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
        log_ratio_BT = logp_BT.float() - logp_BT.float().detach() + mean_B1
        return ops.policy_loss(log_ratio_BT, torch.zeros_like(log_ratio_BT), advantage_BT, self.clip, self.clip_high)
