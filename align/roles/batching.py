"""Rows of like length together. Shapes: B rows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def by_length(length_B: Tensor, size: int, tokens: int | None = None) -> Iterator[Tensor]:
    """Row numbers in groups of like length, so that little padding is computed.

    A group has at most `size` rows and, padded to its longest, at most `tokens` tokens, but one row at least.
    """
    order = length_B.argsort(stable=True)
    if tokens is None:
        yield from order.split(size)
        return
    first = 0
    for last, length in enumerate(length_B[order].tolist()):
        rows = last - first + 1
        if last > first and (rows > size or rows * length > tokens):
            yield order[first:last]
            first = last
    yield order[first:]
