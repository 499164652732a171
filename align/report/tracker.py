"""Trackers by name, through accelerate: tensorboard, wandb, mlflow, comet_ml, trackio …"""

from __future__ import annotations

from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

from align.errors import AlignError


class AccelerateTracker:
    """One of accelerate's trackers, fed by the run's report."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))
            raise AlignError(f"tracker={name}: accelerate knows no such tracker\n  write one of {known}")

    def start(self, run: Path, settings: dict) -> None:
        """Opens the tracker on the run's folder; raises AlignError where its package is not installed."""
        cls = LOGGER_TYPE_TO_CLASS[self.name]
        try:
            found = filter_trackers([self.name], logging_dir=run)
        except (ImportError, ValueError) as error:
            raise AlignError(f"tracker={self.name}: {error}\n  pip install {self.name}") from error
        if not found:
            raise AlignError(f"tracker={self.name}: its package is not installed\n  pip install {self.name}")
        self.tracker = cls("align", logging_dir=run) if cls.requires_logging_directory else cls("align")
        self.tracker.start()
        self.tracker.store_init_configuration(flat(settings))

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.tracker.log(metrics, step=step)

    def finish(self) -> None:
        self.tracker.finish()


def flat(settings: dict, prefix: str = "") -> dict[str, str | int | float | bool]:
    """A nested configuration as dotted keys, with values that every tracker takes."""
    out: dict[str, str | int | float | bool] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[prefix + str(name)] = value if isinstance(value, str | int | float | bool) else str(value)
    return out
