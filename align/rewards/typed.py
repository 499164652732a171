"""A reward's place as users type it: `reward=fn`, `reward@watch.judge=fn`, `+reward@reward.terms.polite=fn`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from align.errors import AlignError

IN_PLACE = ("reward", "preferences.judge", "watch.judge")
"""Keys at which the configuration has a reward that a choice replaces; anywhere else it adds one."""


def chosen_at(key: str) -> str:
    """Text before `=NAME` where the reward at `key` is chosen.

    >>> [chosen_at(key) for key in ("reward", "watch.judge", "reward.terms.polite")]
    ['reward', 'reward@watch.judge', '+reward@reward.terms.polite']
    """
    return ("" if key in IN_PLACE else "+") + ("reward" if key == "reward" else f"reward@{key}")


@contextmanager
def told_at(key: str) -> Iterator[None]:
    """Inside, errors of a reward that advise `reward=…` or `+reward@reward.NAME=…` name its `key` instead.

    Raises what is raised inside, an AlignError in these words.
    """
    try:
        yield
    except AlignError as error:
        if key == "reward":
            raise
        message = str(error).replace("reward@reward.", f"reward@{key}.")
        raise AlignError(re.sub(r"(?<![\w.@])reward=", f"{chosen_at(key)}=", message)) from error
