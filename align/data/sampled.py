"""What the stage `preferences` wrote: answers of a policy, ranked by a judge: `data@dpo.data=sampled`."""

from __future__ import annotations

from pathlib import Path

from align.data.files import FileData
from align.data.source import Source, Split
from align.errors import AlignError

RANKINGS, HELD_OUT = "rankings.jsonl", "held_out.jsonl"
AUTO = "auto"


class Sampled:
    """A Source of a preferences stage's folder; `auto`: of this run, which is to write it yet."""

    def __init__(self, path: str = AUTO) -> None:
        self.path = path

    def check(self, purpose: str) -> None:
        if self.path != AUTO:
            self._files(purpose).check(purpose)

    def look(self, purpose: str) -> None:
        if self.path != AUTO:
            self._files(purpose).look(purpose)

    def load(self, purpose: str, seed: int) -> Split:
        return self._files(purpose).load(purpose, seed)

    def _files(self, purpose: str) -> FileData:
        folder = Path(self.path).expanduser()
        if not (folder / RANKINGS).is_file():
            raise AlignError(
                f"{purpose}.data.path={self.path}: there is no {RANKINGS} in it\n  write {purpose}.data.path="
                "runs/NAME/latest/preferences, a folder of that stage"
            )
        held_out = folder / HELD_OUT
        several = len((folder / RANKINGS).read_text(encoding="utf-8").splitlines()) > 1
        share = 0.05 if several and not held_out.exists() else 0.0
        return FileData(
            "rankings", str(folder / RANKINGS), eval_path=str(held_out) if held_out.exists() else None, eval_share=share
        )


def unwritten(data: Source | list[Source]) -> bool:
    """This run's stage `preferences` is still to write the data."""
    return isinstance(data, Sampled) and data.path == AUTO


def located(data: Source, inputs: dict[str, str]) -> Source:
    """The data, from where this run's stage `preferences` has written them where they come from there."""
    return Sampled(inputs["samples"]) if "samples" in inputs else data
