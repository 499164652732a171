"""Whether rows prefer anything, as far as their texts tell."""

from __future__ import annotations

from align.errors import AlignError


def check_preferring(rows: list[dict], key: str) -> None:
    """Raises AlignError where every pair has one text on both sides, or every answer one label."""
    if rows and all("chosen" in row and row["chosen"] == row["rejected"] for row in rows):
        raise AlignError(
            f"{key}.data: no pair is left of {len(rows)}, since chosen and rejected are alike in each: write pairs "
            f"that differ in {key}.data.path"
        )
    labels = {row.get("label") for row in rows}
    if len(labels) == 1 and labels != {None}:
        raise AlignError(
            f"{key}.data: every answer is labelled {str(labels.pop()).lower()}, and there is nothing to tell apart: "
            f"write rows of both labels in {key}.data.path"
        )
