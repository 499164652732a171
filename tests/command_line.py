"""The command line in this process: what it prints, its exit status, and a folder with data of every kind."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from align.cli.main import main

COLUMNS = 100
SFT = "stages=sft model={base} sft.data.path=demos.jsonl"
RM = "stages=rm model={base} rm.data.path=pairs.jsonl"
LEARNED = (
    "stages=ppo actor.path={base} ppo.data.path=prompts.jsonl rollout=hf rollout.max_new_tokens=8 "
    "ppo.max_prompt_tokens=32"
)
PPO = f"{LEARNED} reward=fn reward.fn=my_rewards.brevity"
TINY = "experiment=tiny debug=default"


@dataclass
class Answer:
    status: int
    out: str
    err: str

    def lines(self) -> int:
        """Lines on a terminal, long ones folded."""
        return sum(max(1, math.ceil(len(line) / COLUMNS)) for line in (self.out + self.err).splitlines())


def answer(capsys: pytest.CaptureFixture, arguments: str) -> Answer:
    """What `align ARGUMENTS` gives."""
    capsys.readouterr()
    status = 0
    try:
        main(shlex.split(arguments))
    except SystemExit as end:
        status = end.code
    return Answer(status, *capsys.readouterr())


def refused(capsys: pytest.CaptureFixture, arguments: str, words: list[str]) -> Answer:
    """The answer to bad input: one screen, no traceback, and the words that it must hold."""
    said = answer(capsys, arguments)
    assert said.status not in (0, None), said
    assert "Traceback" not in said.err + said.out, said
    assert "does not know this error" not in said.err
    assert said.err.startswith("align: ")
    assert said.lines() <= 24, said.err
    for word in words:
        assert word in said.err, f"{word!r} is not in:\n{said.err}"
    return said


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Makes `folder` the one that one stands in; modules of its names are forgotten before and afterwards."""
    for file in folder.glob("*.py"):
        sys.modules.pop(file.stem, None)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def write_rows(file: Path, rows: list) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: Path) -> None:
    """Small data sets, good and bad, and reward functions, good and bad."""
    numbers = range(12)
    write_rows(folder / "demos.jsonl", [{"prompt": f"say {i}", "completion": f" {i} it is"} for i in numbers])
    write_rows(
        folder / "pairs.jsonl", [{"prompt": f"say {i}", "chosen": f" {i}", "rejected": f" not {i}"} for i in numbers]
    )
    write_rows(folder / "prompts.jsonl", [{"prompt": f"say {i}", "topic": "numbers"} for i in numbers])
    write_rows(folder / "alike.jsonl", [{"prompt": f"say {i}", "chosen": " a", "rejected": " a"} for i in numbers])
    write_rows(folder / "nocolumn.jsonl", [{"question": "say", "answer": "no"}])
    write_rows(folder / "typed.jsonl", [{"prompt": "say 1", "completion": " 1"}, {"prompt": 7, "completion": " 2"}])
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"prompt": "say", "completion": " a"}\n{"prompt": "say"\n')
    (folder / "my_rewards.py").write_text(
        "def brevity(completions, **kwargs):\n    return [-len(c) / 100 for c in completions]\n\n\n"
        "def short(completions, **kwargs):\n    return [0.0]\n\n\n"
        "def nan(completions, **kwargs):\n    return [float('nan') for _ in completions]\n\n\n"
        "def raises(completions, **kwargs):\n    raise KeyError('colour')\n\n\n"
        "def bare(completions):\n    return [0.0 for _ in completions]\n\n\n"
        "def right(completions, solution, **kwargs):\n    return [0.0 for _ in solution]\n"
    )
    (folder / "broken_plugin.py").write_text("import no_such_package\n\n\ndef score(**kwargs): ...\n")


def leaves(node: dict) -> int:
    """Values in a configuration; a list counts as one."""
    return sum(leaves(value) if isinstance(value, dict) and value else 1 for value in node.values())
