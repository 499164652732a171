"""What a stage tells of the tasks of a mixture."""

from __future__ import annotations

from align.data.mixture import by_task
from align.report.report import StageReport


def tell_tasks(rows: list[dict], report: StageReport) -> None:
    """A line a task on how many of the rows are its own, and `tasks` in card.json; nothing for rows of no mixture."""
    counts = {name: len(own) for name, own in by_task(rows).items()}
    for name, count in counts.items():
        report.say(f"task {name}: {count} of {len(rows)} rows")
    if counts:
        report.write_card(tasks=counts)
