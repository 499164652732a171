"""Seconds by phase of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """`with clock("generate"): …` adds up wall seconds by name until `start` is called again."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.begun = time.perf_counter()
        self.phases: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - before

    def seconds(self, tokens: int) -> dict[str, float]:
        """Seconds since `start`, by phase and in all, and response tokens a second of generation."""
        metrics = {f"seconds/{phase}": value for phase, value in self.phases.items()}
        metrics["seconds/step"] = time.perf_counter() - self.begun
        metrics["tokens_per_second"] = tokens / max(self.phases.get("generate", 0.0), 1e-9)
        return metrics
