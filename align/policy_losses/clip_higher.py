"""The loss of DAPO. Shapes: B completions, T response tokens."""

from dataclasses import dataclass

from torch import Tensor

from align import ops


@dataclass
class ClipHigher:
    """More room for a token to become likelier than to become less likely (Yu et al. 2025, arXiv 2503.14476)."""

    clip: float
    """Largest distance of the ratio below 1 before it is clipped."""
    clip_high: float
    """Largest distance of the ratio above 1 before it is clipped."""

    def __post_init__(self) -> None:
        if not self.clip_high > 0:
            raise ValueError(f"clip_high={self.clip_high}: use a number above 0 (0.28 in the paper)")

    def __call__(self, logp_BT: Tensor, old_logp_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return ops.policy_loss(logp_BT, old_logp_BT, advantage_BT, self.clip, self.clip_high)
