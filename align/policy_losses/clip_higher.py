"""The loss of DAPO. Shapes: B completions, T response tokens."""

from dataclasses import MISSING

from torch import Tensor

from align import ops
from align.config.fields import number, section


@section("policy_loss")
class ClipHigher:
    """More room for a token to become likelier than to become less likely (Yu et al. 2025, arXiv 2503.14476)."""

    clip: float = number(MISSING, above=0)
    """Largest distance of the ratio below 1 before it is clipped."""
    clip_high: float = number(MISSING, above=0)
    """Largest distance of the ratio above 1 before it is clipped."""

    def __call__(self, logp_BT: Tensor, old_logp_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return ops.policy_loss(logp_BT, old_logp_BT, advantage_BT, self.clip, self.clip_high)
