"""A table as a picture, by matplotlib: a panel a figure, over the setting that takes the most values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from align.config.choices import FOR_LORA
from align.errors import AlignError
from align_runs.runs import DONE
from align_runs.show import shorten, text
from align_runs.table import STATE, Table

PANELS = 9
COLOURS = 10
WIDE = 10.0
"""Largest over smallest, from which an axis is logarithmic."""


def plot(table: Table, file: Path) -> None:
    """Draw a table into a file. Raises AlignError where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = [name for name in table.figures if table.frame[name].notna().any()][:PANELS]
    if not figures:
        raise AlignError(f"table --to {file}: no run has a figure yet. Use --to {file.with_suffix('.md')}.")
    x, colour = axes(table)
    names = shorten([*table.settings, *table.figures])
    width = min(len(figures), 3)
    height = -(-len(figures) // width)
    picture, panels = pyplot.subplots(height, width, figsize=(4.5 * width, 3.4 * height), squeeze=False)
    for panel, name in zip(panels.flat, figures, strict=False):
        _panel(panel, table, name, x, colour)
        panel.set_title(names[name])
        panel.set_xlabel(names.get(x, table.first))
    for panel in list(panels.flat)[len(figures) :]:
        panel.set_visible(False)
    if colour is not None:
        panels.flat[0].legend(title=names[colour], fontsize="small")
    picture.tight_layout()
    picture.savefig(file, dpi=150)
    pyplot.close(picture)


def axes(table: Table) -> tuple[str | None, str | None]:
    """The setting along the axis (None: the rows), one of numbers before one of words, and that of the colours."""
    counts = {key: table.frame[key].nunique(dropna=False) for key in table.settings}
    order = sorted(counts, key=lambda key: (not _numeric(table, key), -counts[key]))
    varying = [key for key in order if counts[key] > 1]
    return (varying[0] if varying else None), next((key for key in varying[1:2] if counts[key] <= COLOURS), None)


def number(value: Any) -> float | None:
    """A number that can stand on an axis; `lora:2e-4` is 2e-4, and None is for what is no number.

    >>> number("lora:2e-4"), number("lora")
    (0.0002, None)
    """
    try:
        return float(value.removeprefix(FOR_LORA) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        return None


def _numeric(table: Table, key: str) -> bool:
    values = table.frame[key][table.frame[STATE].eq(DONE)]
    return bool(values.map(lambda value: number(value) is not None).all()) and not values.isna().any()


def _panel(panel: Any, table: Table, name: str, x: str | None, colour: str | None) -> None:
    numeric = x is not None and _numeric(table, x)
    points = pd.DataFrame({
        "x": table.frame[x or table.first].map(number if numeric else text),
        "y": table.frame[name].astype(float),
        "deviation": 0.0 if table.deviation is None else table.deviation[name].fillna(0.0),
        "colour": table.frame[colour].map(text) if colour else "",
    }).dropna()  # fmt: skip
    for label, series in points.groupby("colour", sort=False):
        series = series.sort_values("x", kind="stable") if numeric else series
        line = "-" if numeric and series["x"].is_unique else ""
        deviations = series["deviation"] if series["deviation"].any() else None
        panel.errorbar(series["x"], series["y"], deviations, fmt="o" + line, label=label, capsize=3)
    if numeric and len(points) and points["x"].min() > 0 and points["x"].max() / points["x"].min() >= WIDE:
        panel.set_xscale("log")
