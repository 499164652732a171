"""PPO with a second clip. Shapes: B completions, T response tokens."""

from dataclasses import dataclass

from torch import Tensor

from align import ops


@dataclass
class DualClip:
    """A bad token that has become far likelier cannot rule the batch (Ye et al. 2020, arXiv 1912.09729)."""

    clip: float
    """As of PPO: the ratio is clipped to 1 ± clip."""
    dual_clip: float
    """The ratio of a token with a negative advantage counts up to this; above 1."""

    def __post_init__(self) -> None:
        if not self.dual_clip > 1:
            raise ValueError(f"dual_clip={self.dual_clip}: use a number above 1 (3 in the paper)")

    def __call__(self, logp_BT: Tensor, old_logp_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return ops.policy_loss(logp_BT, old_logp_BT, advantage_BT, self.clip, dual_clip=self.dual_clip)
