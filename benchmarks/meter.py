"""CPU seconds by phase, and the peak of resident memory: the same ruler for both sides. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def prepare(threads: int = 2) -> None:
    """Before torch is imported: threads, waiting passively, and nothing from the network."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


class Meter:
    """Seconds are charged to the innermost phase; memory is sampled a hundred times a second."""

    def __init__(self) -> None:
        self.base = _resident()
        self.top = self.base
        self.phases: list[str] = []
        self.cpu: dict[str, float] = {}
        self.steps: list[dict[str, float]] = []
        self._charged = time.process_time()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        self._charge()
        self.phases.append(name)

    def leave(self) -> None:
        self._charge()
        self.phases.pop()

    def wrap(self, owner: Any, name: str, phase: str | Callable[..., str | None]) -> None:
        """Charges every call of `owner.name` to a phase, or to the one around it where that is None."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            found = phase if isinstance(phase, str) else phase(*args, **kwargs)
            if found is None:
                return inner(*args, **kwargs)
            with self.phase(found):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)

    def start(self) -> None:
        self._charge()
        self.cpu = {}

    def end_step(self) -> None:
        """Closes a step: its seconds go into `steps`."""
        self._charge()
        self.steps.append({name: round(seconds, 3) for name, seconds in self.cpu.items()})
        self.cpu = {}

    def stop(self) -> None:
        """No more samples of memory."""
        self._stopped.set()

    def report(self, file: str | None, **more: Any) -> dict[str, Any]:
        """The median step, printed, and written as JSON where `file` is given."""
        self.stop()
        totals = [round(sum(step.values()), 3) for step in self.steps]
        middle = self.steps[sorted(range(len(totals)), key=totals.__getitem__)[len(totals) // 2]]
        most = max(self.top, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        found = {
            **more, "cpu_seconds": middle, "total": round(sum(middle.values()), 3), "all_totals": totals,
            "peak_mib_above_imports": round(most - self.base), "imports_mib": round(self.base),
        }  # fmt: skip
        print(json.dumps(found), flush=True)
        if file:
            Path(file).write_text(json.dumps(found, indent=1) + "\n")
        return found

    def _charge(self) -> None:
        now = time.process_time()
        name = self.phases[-1] if self.phases else "other"
        self.cpu[name] = self.cpu.get(name, 0.0) + now - self._charged
        self._charged = now

    def _watch(self) -> None:
        while not self._stopped.wait(0.01):
            self.top = max(self.top, _resident())


def _resident() -> float:
    """MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
