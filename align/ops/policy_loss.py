"""The clipped policy loss of PPO."""

from torch import Tensor, where

# Beyond it exp() of a log-ratio only overflows: infinity times an advantage of 0 is NaN. As in verl.
LOG_RATIO = 20.0


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip_high)) per token, float32, any shape; ratio = p/p_old.

    Schulman et al. 2017 (arXiv 1707.06347), equation 7. `clip_high` is the upper bound if it differs
    from the lower (Yu et al. 2025, DAPO, arXiv 2503.14476, section 3.1). `dual_clip` bounds the loss of a
    negative advantage by -A dual_clip (Ye et al. 2020, arXiv 1912.09729, equation 5).

    Raises ValueError for a `dual_clip` that is not above 1: it would also cut ratios that PPO leaves alone.
    """
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip={dual_clip}: use a number above 1 (3 in the paper), or none")
    advantage = advantage.float()
    ratio = (logp.float() - old_logp.float()).clamp(-LOG_RATIO, LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    loss = (-advantage * ratio).maximum(-advantage * clipped)
    if dual_clip is None:
        return loss
    return where(advantage < 0, loss.minimum(-advantage * dual_clip), loss)
