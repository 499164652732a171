"""The clipped value loss of PPO."""

from torch import Tensor


def value_loss(value: Tensor, old_value: Tensor, return_: Tensor, clip: float) -> Tensor:
    """Half the larger squared error per token, of the value and of the value clipped; float32, any shape.

    The clipped value stays within `clip` of the old one. OpenAI baselines `ppo2/model.py`; Huang et al. 2022,
    "The 37 Implementation Details of PPO", detail 9.
    """
    value, old_value, return_ = value.float(), old_value.float(), return_.float()
    clipped = old_value + (value - old_value).clamp(-clip, clip)
    return 0.5 * (value - return_).square().maximum((clipped - return_).square())
