"""Runs that end as no run should; in a module of their own, since processes of their own import them."""

import os
import signal
import time

from align.errors import AlignError


def ends(words: list[str]) -> None:
    print(" ".join(words))


def refuses(words: list[str]) -> None:
    raise AlignError("sft.batch_size=0: it is no size. Use 1 or more.")


def breaks(words: list[str]) -> None:
    raise MemoryError("no memory is left")


def is_killed(words: list[str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def goes_on(words: list[str]) -> None:
    time.sleep(600)
