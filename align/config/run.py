"""Options of a run: the keys at the top of a configuration."""

from __future__ import annotations

from align.config.choices import LINEARS, PRECISIONS
from align.config.fields import choice, number, section, shown
from align.errors import AlignError


@section("")
class RunOptions:
    name: str = "run"
    """The run lies in `runs`/NAME."""
    seed: int = number(0, low=0, high=2**32 - 1)
    """Of data, adapters and sampling."""
    stages: str | tuple[str, ...] = ("sft", "rm", "ppo")
    """Stages of the run, in any order; a second instance of one has a number, rm@2."""
    model: str | None = None
    """The model to start from: a folder, or a hub name such as org/name."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    precision: str = choice("auto", *PRECISIONS)
    """fp32, or bf16: autocast over a bf16 base, what trains and its optimizer in float32; auto: bf16 on a GPU."""
    cpu_linear: str = choice("auto", *LINEARS)
    """Kernel of fp32 linear layers: torch, onednn, or auto: measured once, then as card.json has it."""
    runs: str = "runs"
    """Folder of all runs."""

    def check_together(self) -> None:
        """Raise AlignError for an empty word, and for a name that is no folder's."""
        for key in ("name", "model", "device", "runs"):
            if isinstance(word := getattr(self, key), str) and not word.strip():
                raise AlignError(f"{key}={shown(word)}: it is empty\n  use {key}=WORD")
        if set("/\\") & set(self.name) or self.name.startswith("."):
            raise AlignError(
                f"name={self.name}: it names a folder in {self.runs}\n  use a name without slashes or a leading dot"
            )
