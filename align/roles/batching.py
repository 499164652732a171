"""Rows of like length together. Shapes: B rows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def by_length(length_B: Tensor, size: int) -> Iterator[Tensor]:
    """Row numbers in groups of at most `size` of like length, so that little padding is computed."""
    yield from length_B.argsort(stable=True).split(size)
