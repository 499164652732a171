"""Rewards inside a reward, and what any reward may have beside its call; nothing is done where it has none of it.

rewards_inside          those it is made of, by their key below its own: {"terms.polite": …}
check_rows(rows, key)   before a model loads: raises AlignError for rows of the data set that it cannot score
check_reachable()       as PPO starts, before its models load: raises AlignError where what it needs is away
learned()               what it has learned from batches that were trained on, as JSON holds it; {} is nothing
load_learned(saved)     goes on from there
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from align.types import Reward, Scored


def every(reward: Reward, key: str = "") -> Iterator[tuple[str, Reward]]:
    """A reward and all those inside it, each with its key below the first one's own."""
    yield key, reward
    for name, part in inside(reward).items():
        yield from every(part, f"{key}.{name}".lstrip("."))


def inside(reward: Reward) -> dict[str, Reward]:
    return getattr(reward, "rewards_inside", {})


def named(name: str, scored: Scored) -> dict[str, Tensor]:
    """For the log, what a reward inside another one says: its score by its name there, its own terms below that."""
    terms = {part: term_B for part, term_B in scored.terms.items() if term_B is not scored.score_B}
    return {name: scored.score_B, **{f"{name}/{part}": term_B for part, term_B in terms.items()}}


def reads_rows(reward: Reward) -> bool:
    return any(hasattr(one, "check_rows") for _, one in every(reward))


def check_rows(reward: Reward, rows: list[dict], key: str) -> None:
    """A reward that looks at rows hands those inside it their own; any other hands on all."""
    if hasattr(reward, "check_rows"):
        reward.check_rows(rows, key)
        return
    for name, part in inside(reward).items():
        check_rows(part, rows, f"{key}.{name}")


def check_reachable(reward: Reward) -> None:
    for _, one in every(reward):
        if hasattr(one, "check_reachable"):
            one.check_reachable()


def learned(reward: Reward) -> dict[str, dict[str, Any]]:
    """Learned state of a reward and of those inside it, by key; rewards without any are left out."""
    each = {key: one.learned() for key, one in every(reward) if hasattr(one, "learned")}
    return {key: found for key, found in each.items() if found}


def load_learned(reward: Reward, saved: dict[str, dict[str, Any]]) -> None:
    """Load the result of `learned` into a reward of the same settings."""
    for key, one in every(reward):
        if key in saved:
            one.load_learned(saved[key])
