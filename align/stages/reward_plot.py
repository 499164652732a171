"""A reward model's report as a picture: calibration, margins, and score against length."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from align.stages.reward_report import Judged


def plot(judged: Judged, figures: dict[str, Any], file: Path) -> bool:
    """Writes the PNG `file`; False, and nothing is written, where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    reliable, margins, lengths = figure.subplots(1, 3)
    bins = figures["calibration"]["bins"]
    reliable.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", linewidth=1)
    reliable.plot([one["confidence"] for one in bins], [one["right"] for one in bins], marker="o")
    reliable.set(
        xlabel="confidence", ylabel="share right", ylim=(-0.02, 1.02), title=f"ECE {figures['calibration']['ece']:.3f}"
    )
    margins.hist(judged.margin_B.tolist(), bins=30)
    margins.axvline(0, color="grey", linewidth=1)
    margins.set(xlabel="margin", ylabel="pairs", title=f"accuracy {figures['accuracy']:.3f}")
    for name in ("chosen", "rejected"):
        x, y = getattr(judged, f"{name}_length_B"), getattr(judged, f"{name}_B")
        lengths.scatter(x.tolist(), y.tolist(), s=8, alpha=0.6, label=name)
    correlation = figures["length"]["correlation"]
    lengths.set(
        xlabel="tokens of the answer", ylabel="score",
        title="" if correlation is None else f"correlation {correlation:+.2f}",
    )  # fmt: skip
    lengths.legend()
    figure.savefig(file, dpi=110)
    return True
