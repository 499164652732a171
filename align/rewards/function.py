"""A reward function as TRL defines it: keywords in, one number or None per completion out.

Shapes: B completions.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
import math
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.errors import AlignError, AlignWarning
from align.imports import called, defined_at, failed_at, resolve
from align.types import RewardState, Rollout, Scored, Texts
from align.words import counted

# Given in place of the real ones when a row is tried again, so that nothing is logged twice.
LOGGERS = {"log_extra": lambda column, values: None, "log_metric": lambda name, value: None}
GIVEN = {"prompts", "completions", "completion_ids", "trainer_state", *LOGGERS}
# What TRL does not hand on: the same things as columns of the data set.
WITHHELD = {"prompt", "completion", *GIVEN}


@dataclass
class TrainerState:
    """Part of TRL's trainer state that a reward function reads: the number of updates so far."""

    global_step: int


class FunctionReward:
    """Scores by a function with TRL's signature, plain or `async`, that runs in TRL unchanged.

    It is called as fn(prompts=, completions=, completion_ids=, COLUMN=..., trainer_state=, log_extra=,
    log_metric=, **args): lists with one entry a completion; one float or None a completion comes back. None
    is no opinion.

    fn: "module.function", or anything that can be called. args: more keywords, the function's own settings.
    name: in logs and errors; the function's `__name__` unless given.

    Raises ValueError in one line when `fn` cannot be had or called so, and AlignError on a call that fails: it
    names the reward, the row, and the line of the plugin.
    """

    def __init__(self, fn: str | Callable, args: dict | None = None, name: str | None = None) -> None:
        self.fn = resolve(fn) if isinstance(fn, str) else called(fn, repr(fn))
        self.args = dict(args or {})
        self.name = name or _name(self.fn)
        self.wants: set[str] = set()
        self._here = f"reward {self.name!r} ({defined_at(self.fn)})"
        if taken := GIVEN & self.args.keys():
            raise ValueError(f"args.{min(taken)} is what align itself hands over to {self._here}")
        check_takes(self.fn, GIVEN, self.args, self._here)

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """The function's scores, float32, on the rollout's device; NaN where it returns None."""
        keywords = self._keywords(rollout, texts, state)
        try:
            result = self._call(keywords)
        except Exception as error:
            raise self._blame(error, keywords, rollout) from error
        score_B = scores_of(result, rollout, self._here)
        return Scored(score_B, {self.name: score_B})

    def check_rows(self, rows: list[dict], key: str) -> None:
        """Raise AlignError where the columns of the rows, if there are any, are not those that the function takes."""
        if rows:
            columns = {name: [] for row in rows for name in row if name not in WITHHELD}
            self._check_columns(columns, f"{key}.fn: ")

    def _check_columns(self, columns: dict[str, Any], key: str = "") -> None:
        if both := columns.keys() & self.args.keys():
            raise AlignError(f"{key}{self._here}: {min(both)} is in its args and a column of the data set: rename one")
        check_call(self.fn, {*GIVEN, *columns, *self.args}, columns, f"{key}{self._here}")

    def _keywords(self, rollout: Rollout, texts: Texts, state: RewardState) -> dict[str, Any]:
        columns = {name: values for name, values in rollout.columns.items() if name not in WITHHELD}
        self._check_columns(columns)
        return {
            "prompts": texts.prompts,
            "completions": texts.completions,
            "completion_ids": texts.completion_ids,
            **columns,
            "trainer_state": TrainerState(state.step),
            "log_extra": state.log_extra,
            "log_metric": state.log_metric,
            **self.args,
        }

    def _call(self, keywords: dict[str, Any]) -> Any:
        result = self.fn(**keywords)
        if inspect.isawaitable(result):
            result = wait(result)
        in_order = isinstance(result, Iterable) and not isinstance(result, (str, bytes, dict, set))
        return list(result) if in_order else result

    def _blame(self, error: Exception, keywords: dict[str, Any], rollout: Rollout) -> AlignError:
        """Error that names the failure, its row and line. The row is found by calling again with one row at a time."""
        for row in range(len(rollout)):
            try:
                self._call(_one_row(keywords, row, rollout))
            except Exception as alone:
                return AlignError(f"reward {self.name!r}, {row_name(rollout, row)}: {self._said(alone)}")
        return AlignError(
            f"reward {self.name!r}: {self._said(error)}; no row fails alone, only all {len(rollout)} together"
        )

    def _said(self, error: Exception) -> str:
        return f"{type(error).__name__}: {error} ({failed_at(error, self.fn)})"


def _one_row(keywords: dict[str, Any], row: int, rollout: Rollout) -> dict[str, Any]:
    per_row = {"prompts", "completions", "completion_ids", *(rollout.columns.keys() - WITHHELD)}
    one = {name: keywords[name][row : row + 1] for name in per_row}
    return {**keywords, **one, **LOGGERS}


def _name(fn: Callable) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__name__", type(fn).__name__)


def check_takes(fn: Callable, given: Iterable[str], args: Iterable[str], here: str) -> None:
    """Nothing, if `fn` takes the keywords that TRL gives and those of `args`; ValueError if not.

    Warns of an argument that only **kwargs takes, if its name is almost that of one that `fn` has.
    """
    signature = _signature(fn)
    if signature is None:
        return
    for group, name, remedy in ((given, "fn", "; end its arguments with **kwargs, as TRL's do"), (args, "args", "")):
        try:
            signature.bind_partial(**dict.fromkeys(group))
        except TypeError as error:
            raise ValueError(f"{name} does not fit {here}: {error}{remedy}") from None
    for name in set(args) - signature.parameters.keys():
        if near := difflib.get_close_matches(name, signature.parameters, n=1, cutoff=0.75):
            warnings.warn(f"{here}: only **kwargs takes args.{name}; is it {near[0]}?", AlignWarning, stacklevel=3)


def check_call(fn: Callable, keywords: Iterable[str], columns: Iterable[str], here: str) -> None:
    """Nothing, if `fn` can be called with `keywords`; AlignError, with the columns there are, if not."""
    signature = _signature(fn)
    if signature is None:
        return
    try:
        signature.bind(**dict.fromkeys(keywords))
    except TypeError as error:
        have = ", ".join(sorted(columns)) or "none beside the prompt"
        raise AlignError(f"{here}: {error}; columns of the data set: {have}; others come from its args") from None


def _signature(fn: Callable) -> inspect.Signature | None:
    try:
        return inspect.signature(fn)
    except ValueError:  # a builtin that does not say what it takes
        return None


def scores_of(result: Any, rollout: Rollout, here: str) -> Tensor:
    """float32, shape (completions,), on the rollout's device; NaN where `result` has None.

    Raises AlignError, beginning with `here`, unless `result` is a list of one finite number or None a completion.
    """
    if not isinstance(result, list):
        raise AlignError(f"{here} returned {type(result).__name__} {result!r:.60}, not a list of numbers")
    if len(result) != len(rollout):
        raise AlignError(f"{here} returned {counted(len(result), 'score')} for {counted(len(rollout), 'completion')}")
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


def wait(awaitable: Awaitable) -> Any:
    """Result of `awaitable`, computed on a loop of align: a notebook's is running already."""

    async def result():
        return await awaitable

    future = asyncio.run_coroutine_threadsafe(result(), _loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C: nobody waits any more
        future.cancel()
        raise


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all rewards and all steps, so that a function may keep its client between calls."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="align-rewards", daemon=True).start()
    return loop
