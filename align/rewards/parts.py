"""What a reward may have beside its call; nothing is done where it has none of it.

parts     rewards inside it, by their key below its own: {"terms.polite": …}
start()   called as PPO starts, before models load: raises AlignError where what it needs is not there
"""

from __future__ import annotations

from collections.abc import Iterator

from align.types import Reward


def every(reward: Reward, key: str = "") -> Iterator[tuple[str, Reward]]:
    """A reward and all those inside it, each with its key below the first one's own."""
    yield key, reward
    for name, part in getattr(reward, "parts", {}).items():
        yield from every(part, f"{key}.{name}".lstrip("."))


def start(reward: Reward) -> None:
    for _, one in every(reward):
        if hasattr(one, "start"):
            one.start()
