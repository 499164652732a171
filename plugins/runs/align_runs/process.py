"""A trial's run in a process of its own: what it does to memory, or to the process, does not reach the search.

Processes are forked from a server that has imported the libraries, where there is no GPU: CUDA is best left alone
before a fork. A run ends with the search, also with one that is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from align_runs.compose import message_of, on_cpu

PRELOADED = ["align_runs.preload"]
POLL = 0.2
"""Seconds between looks at a run's metrics."""
PATIENCE = 10.0
"""Seconds that a run has to end after it is stopped."""
DIED = ""
"""In the place of a message from a process that sent none."""
Run = Callable[[list[str]], object]


class Running:
    """A run that has been started; `ended` waits for it a little."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process = process
        self.pipe = pipe

    def ended(self) -> bool:
        return self.pipe.poll(POLL) or not self.process.is_alive()

    def failure(self) -> str | None:
        """Reason why the run did not come to its end; None where it did. To be called once, when it has ended."""
        try:
            message = self.pipe.recv() if self.pipe.poll() else DIED
        except EOFError:
            message = DIED
        self.process.join(PATIENCE)  # it is cleaning up
        return _death(self.process.exitcode) if message == DIED else message

    def stop(self) -> None:
        self.process.terminate()
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextmanager
def started(run: Run, words: list[str], log: Path) -> Iterator[Running]:
    """A process that runs `align run WORDS` and prints to `log`; it is gone when the block is left."""
    context = multiprocessing.get_context("forkserver")
    if on_cpu():
        context.set_forkserver_preload(PRELOADED)  # only the first start of this process reads it
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, words, str(log), theirs), daemon=False)
    process.start()
    theirs.close()
    running = Running(process, ours)
    try:
        yield running
    finally:
        running.stop()
        ours.close()


def _work(run: Run, words: list[str], log: str, pipe: Connection) -> None:
    """In the child: the run, its output into the log, and its error, or None, into the pipe."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _end)
    try:
        run(["run", *words])
    except Exception as error:
        message = message_of(error)
        print(message, file=sys.stderr, flush=True)
        pipe.send(message.removeprefix("align: "))
    else:
        pipe.send(None)


def _end(*_: object) -> None:
    """End as at the end of a script, once: locks and files are closed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _death(code: int | None) -> str:
    """The reason for a process that ended without a message."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        why = ", as the system ends one that takes too much memory" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{why}"
    return f"its process ended with status {code}"
