"""A score for not being too long.

Shapes: B completions.
"""

from torch import Tensor


def overlong_penalty(length_B: Tensor, max_length: int, buffer: int) -> Tensor:
    """From 0 down to -1, to be added to the score; float32, shape B.

    0 up to max_length - buffer tokens, then down in a line to -1 at max_length, -1 beyond it. The soft overlong
    punishment of DAPO (Yu et al. 2025, arXiv 2503.14476, equation 13).

    Raises ValueError for a buffer that is not from 1 to max_length.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer={buffer}: use a number of tokens from 1 to max_length={max_length}")
    return ((max_length - buffer - length_B.float()) / buffer).clamp(-1.0, 0.0)
