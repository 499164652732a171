"""The command line in this process: what it prints, its exit status, and a folder with data to stand in."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from align.cli.main import main

SCREEN = 24
SFT = "stages=sft model={base} sft.data.path=demos.jsonl"
RM = "stages=rm model={base} rm.data.path=pairs.jsonl"
PPO = (
    "stages=ppo actor.path={base} ppo.data.path=prompts.jsonl rollout=hf rollout.max_new_tokens=8 "
    "ppo.max_prompt_tokens=32 reward=fn"
)


@dataclass
class Printed:
    status: int
    out: str
    err: str


def align(capsys: pytest.CaptureFixture, words: str) -> Printed:
    """Run `align WORDS` here."""
    capsys.readouterr()
    status = 0
    try:
        main(shlex.split(words))
    except SystemExit as end:
        status = end.code
    return Printed(status, *capsys.readouterr())


def refused(capsys: pytest.CaptureFixture, words: str, expected: list[str]) -> None:
    """Run a bad command: it ends with one screen without a traceback that holds all that is expected."""
    printed = align(capsys, words)
    assert printed.status not in (0, None), printed
    assert "Traceback" not in printed.err + printed.out and "does not know this error" not in printed.err, printed
    assert printed.err.startswith("align: ") and len(printed.err.splitlines()) <= SCREEN
    for text in expected:
        assert text in printed.err, f"{text!r} is not in:\n{printed.err}"


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make `folder` the current one; modules of its names are forgotten before and afterwards."""
    for file in folder.glob("*.py"):
        sys.modules.pop(file.stem, None)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def write_data(folder: Path) -> None:
    """Demonstrations, pairs, prompts, and a reward function that fails."""
    data = {
        "demos": [{"prompt": f"say {i}", "completion": f" {i} it is"} for i in range(12)],
        "pairs": [{"prompt": f"say {i}", "chosen": f" {i}", "rejected": f" not {i}"} for i in range(12)],
        "prompts": [{"prompt": f"say {i}"} for i in range(12)],
    }
    for name, rows in data.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my_rewards.py").write_text("def raises(completions, **kwargs):\n    raise KeyError('colour')\n")
