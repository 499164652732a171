"""Search for values that are infinite or not a number."""

from collections.abc import Iterable

from torch import Tensor


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds such a value; None where all are finite.

    Tensors of whole numbers, and of numbers of 8 bits and fewer, count as finite.
    """
    for name, tensor in named:
        if tensor.is_floating_point() and tensor.element_size() > 1 and not tensor.isfinite().all():
            return name
    return None
