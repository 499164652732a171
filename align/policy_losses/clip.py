"""The loss of PPO. Shapes: B completions, T response tokens."""

from dataclasses import MISSING

from torch import Tensor

from align import ops
from align.config.fields import number, section


@section("policy_loss")
class Clip:
    """The ratio is clipped to 1 ± clip (Schulman et al. 2017, arXiv 1707.06347, equation 7)."""

    clip: float = number(MISSING, above=0)
    """Distance of the ratio from 1 beyond which a token has no more say."""

    def __call__(self, logp_BT: Tensor, old_logp_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return ops.policy_loss(logp_BT, old_logp_BT, advantage_BT, self.clip)
