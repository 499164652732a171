"""Another reward for each kind of row: a column of the data set says which.

    align reward=by_column reward.column=task +reward@reward.cases.math=fn reward.cases.math.fn=my_rewards.right

Shapes: B completions, C completions of a case.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor

from align.errors import AlignError, AlignWarning
from align.rewards.function import row_name
from align.rewards.parts import check_rows, named
from align.types import Reward, RewardState, Rollout, Scored, Texts

DEFAULT = "default"
"""The case of every value without a case."""


class ByColumn:
    """The score of the case that a row's column names: a word, a whole number, true, false or null.

    cases: rewards by the column's values; the one called `default` takes all other values. Each is handed its
    own rows alone, and logged by its name (NaN, no opinion, on other rows), its own terms below it.

    Raises ValueError without cases.
    """

    def __init__(self, column: str, cases: dict[str, Reward]) -> None:
        if not cases:
            raise ValueError("cases has none: add one for each value, +reward@reward.cases.VALUE=fn")
        self.column = column
        self.cases = {str(name): case for name, case in cases.items()}
        self.rewards_inside = {f"cases.{name}": case for name, case in self.cases.items()}
        self.wants = set().union(*(case.wants for case in cases.values()))

    def check_rows(self, rows: list[dict], key: str) -> None:
        """Raises AlignError for a row without a case; warns of a case without a row."""
        rows_of: dict[str, list[dict]] = {name: [] for name in self.cases}
        for row in rows:
            if self.column not in row:
                raise AlignError(
                    f"{key}.column={self.column}: the data set has no such column, only {', '.join(row)}\n"
                    f"  use {key}.column=COLUMN, one of these"
                )
            rows_of[self._case(row[self.column], key, f"the prompt {str(row.get('prompt'))[:60]!r}")].append(row)
        for name, case in self.cases.items():
            if not rows_of[name] and name != DEFAULT:
                warnings.warn(
                    f"{key}.cases.{name}: no row of the data set has {self.column}={name}", AlignWarning, stacklevel=2
                )
            check_rows(case, rows_of[name], f"{key}.cases.{name}")

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """score_B and terms, float32. Raises AlignError for a row without a case."""
        if self.column not in rollout.columns:
            raise AlignError(f"reward.column={self.column}: the data set has no such column")
        values = rollout.columns[self.column]
        names = [self._case(value, "reward", row_name(rollout, row)) for row, value in enumerate(values)]
        terms: dict[str, Tensor] = {}
        score_B = torch.full((len(rollout),), torch.nan, device=rollout.row_B.device)
        penalty_B = torch.zeros_like(score_B)
        for name in dict.fromkeys(names):
            rows_C = torch.tensor([row for row, case in enumerate(names) if case == name], device=score_B.device)
            own = dataclasses.replace(state.within(name), scores=state.scores[rows_C])
            scored = self.cases[name](rollout[rows_C], texts[rows_C], own)
            score_B[rows_C] = scored.score_B.to(score_B)
            penalty_B[rows_C] = 0.0 if scored.penalty_B is None else scored.penalty_B.to(score_B)
            for term, value_C in named(name, scored).items():
                terms[term] = torch.full_like(score_B, torch.nan).index_copy(0, rows_C, value_C.to(score_B))
        return Scored(score_B, terms, penalty_B)

    def _case(self, value: Any, key: str, where: str) -> str:
        name = _word(value)
        if name in self.cases:
            return name
        if DEFAULT in self.cases:
            return DEFAULT
        new = name if name and name.replace("_", "").isalnum() else "VALUE"
        raise AlignError(
            f"{key}.column={self.column}: {where} has {value!r:.60}, and the cases are {', '.join(self.cases)}\n"
            f"  use +reward@{key}.cases.{new}=fn, or +reward@{key}.cases.{DEFAULT}=fn for all other values"
        )


def _word(value: Any) -> str | None:
    """A value as a key in yaml has it; None for what can be no key."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, str | int) else None
