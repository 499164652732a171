"""What a reward was told, as numbers: one a completion, None for no opinion, anything else refused with its row."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.errors import AlignError
from align.types import Rollout


def scores_of(result: Any, rollout: Rollout, here: str) -> Tensor:
    """float32, shape (completions,), on the rollout's device; NaN where `result` has None.

    Raises AlignError, beginning with `here`, unless `result` is a list of one finite number or None a completion.
    """
    if not isinstance(result, list):
        raise AlignError(f"{here} returned {type(result).__name__} {result!r:.60}, not a list of numbers")
    if len(result) != len(rollout):
        raise AlignError(f"{here} returned {len(result)} scores for {len(rollout)} completions")
    numbers = [_number(score, f"{here}, {row_name(rollout, row)}") for row, score in enumerate(result)]
    return torch.tensor(numbers, dtype=torch.float32, device=rollout.row_B.device)


def row_name(rollout: Rollout, row: int) -> str:
    return f"row {row} of the batch (row {int(rollout.row_B[row])} of the data set)"


def _number(score: Any, here: str) -> float:
    if score is None:
        return math.nan
    if isinstance(score, (torch.Tensor, np.generic)) and score.ndim == 0:
        score = score.item()
    if not isinstance(score, Real):
        raise AlignError(f"{here}: returned {type(score).__name__} {score!r:.60}, not a number or None")
    try:
        number = float(score)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise AlignError(f"{here}: returned {score!s:.60}, not a finite number; None is how to say no opinion")
    return number
