"""The answer of what is `async`, from code that is not."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable
from typing import Any


def wait(awaitable: Awaitable) -> Any:
    """What `awaitable` gives, worked out on our own loop: a notebook's is running already."""

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
