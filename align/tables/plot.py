"""A table as a picture, by matplotlib: a panel a figure, over the setting that takes the most values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.config.choices import FOR_LORA
from align.errors import AlignError
from align.tables.show import shorten, text
from align.tables.table import Row, Spread, Table

PANELS = 9
WIDE = 10.0
"""Largest over smallest, from which an axis is logarithmic."""


def plot(table: Table, file: Path) -> None:
    """Writes the picture. Raises AlignError where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = [name for name in table.figures if any(name in row.figures for row in table.rows)][:PANELS]
    if not figures:
        raise AlignError(f"table: --to {file}: no run has a figure to draw yet\n  leave --to out to see how they stand")
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
    """The setting along the axis (None: the rows), one of numbers before one of words, and that which colours tell."""
    counts = {key: len({row.settings.get(key) for row in table.rows}) for key in table.settings}
    order = sorted(counts, key=lambda key: (not _all_numbers(table.rows, key), -counts[key]))
    varying = [key for key in order if counts[key] > 1]
    return (varying[0] if varying else None), (varying[1] if len(varying) > 1 and counts[varying[1]] <= 10 else None)


def number(value: Any) -> float | None:
    """What can stand on an axis of numbers; `lora:2e-4` is 2e-4."""
    try:
        return float(value.removeprefix(FOR_LORA) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        return None


def _all_numbers(rows: list[Row], key: str) -> bool:
    return all(number(row.settings.get(key)) is not None for row in rows if row.state == "done")


def _panel(panel: Any, table: Table, name: str, x: str | None, colour: str | None) -> None:
    numeric = x is not None and _all_numbers(table.rows, x)
    series: dict[str, list[tuple[Any, Row]]] = {}
    for row in table.rows:
        place = row.label if x is None else row.settings.get(x)
        place = number(place) if numeric else text(place)
        if name in row.figures and place is not None:
            series.setdefault(text(row.settings.get(colour)) if colour else "", []).append((place, row))
    for label, points in series.items():
        points.sort(key=lambda point: point[0]) if numeric else None
        places = [place for place, _ in points]
        found = [row.figures[name] for _, row in points]
        means = [value.mean if isinstance(value, Spread) else value for value in found]
        deviations = [(value.deviation or 0.0) if isinstance(value, Spread) else 0.0 for value in found]
        line = "-" if numeric and len(set(places)) == len(places) else ""
        panel.errorbar(places, means, deviations if any(deviations) else None, fmt="o" + line, label=label, capsize=3)
    every = [place for points in series.values() for place, _ in points]
    if numeric and every and min(every) > 0 and max(every) / min(every) >= WIDE:
        panel.set_xscale("log")
