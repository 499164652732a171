"""Trackers by name, through accelerate: tensorboard, wandb, mlflow, comet_ml, trackio …"""

from __future__ import annotations

from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from align.config.leaves import leaves
from align.errors import AlignError


class AccelerateTracker:
    """One of accelerate's trackers, fed by the run's report; refused where its package is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))
            raise AlignError(f"tracker={name}: accelerate knows no such tracker\n  use one of {known}")
        if name not in map(str, get_available_trackers()):
            raise AlignError(f"tracker={name}: its package is not installed\n  pip install {name}, or use tracker=none")

    def start(self, run: Path, settings: dict) -> None:
        """Opens the tracker on the run's folder."""
        cls = LOGGER_TYPE_TO_CLASS[self.name]
        self.tracker = cls("align", logging_dir=run) if cls.requires_logging_directory else cls("align")
        self.tracker.start()
        self.tracker.store_init_configuration(flat(settings))

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.tracker.log(metrics, step=step)

    def finish(self) -> None:
        self.tracker.finish()


def flat(settings: dict) -> dict[str, str | int | float | bool]:
    """A nested configuration as dotted keys, with values that every tracker takes."""
    found = {key: value for key, value in leaves(settings) if value != {}}
    return {key: value if isinstance(value, str | int | float | bool) else str(value) for key, value in found.items()}
