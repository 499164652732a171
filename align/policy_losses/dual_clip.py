"""PPO with a second clip. Shapes: B completions, T response tokens."""

from dataclasses import MISSING

from torch import Tensor

from align import ops
from align.config.fields import number, section


@section("policy_loss")
class DualClip:
    """A bad token that has become far likelier cannot rule the batch (Ye et al. 2020, arXiv 1912.09729)."""

    clip: float = number(MISSING, above=0)
    """As of PPO: the ratio is clipped to 1 ± clip."""
    dual_clip: float = number(MISSING, above=1)
    """The ratio of a token with a negative advantage counts up to this; above 1."""
    clip_high: float | None = number(None, above=0)
    """Largest distance of the ratio above 1 before it is clipped, as of clip_higher; null: clip."""

    def __call__(self, logp_BT: Tensor, old_logp_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return ops.policy_loss(logp_BT, old_logp_BT, advantage_BT, self.clip, self.clip_high, self.dual_clip)
