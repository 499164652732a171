"""Rows of like length together. Shapes: B rows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def by_length(length_B: Tensor, size: int, tokens: int | None = None) -> Iterator[Tensor]:
    """Row numbers in groups of like length, so that little padding is computed; the longest first.

    A group has at most `size` rows and, padded to its longest, at most `tokens` tokens, but one row at least. What
    the first group leaves free has room for every other, and if memory is short, it is so at once.
    """
    order = length_B.argsort(descending=True, stable=True)
    if tokens is None:
        yield from order.split(size)
        return
    lengths, first = length_B[order].tolist(), 0
    for last in range(1, len(lengths)):
        rows = last - first + 1
        if rows > size or rows * lengths[first] > tokens:
            yield order[first:last]
            first = last
    yield order[first:]
