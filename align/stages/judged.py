"""answers.jsonl of the stage `preferences`: judged answers, written as they come, for a later run to go on from.

The first line says what they were made from, each further one holds a policy's answers to a prompt.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import AlignError
from align.stages.rollouts import Row
from align.types import Reward, RewardState, Rollout, Texts

ANSWERS = "answers.jsonl"
Key = tuple[str, str, int, str]


@dataclass
class Judged:
    """A policy's answers to a row, and the judge's scores; `extra` is what else it says.

    None where it has no opinion, and where an answer did not end: those it is not asked about.
    """

    policy: str
    file: str
    """Which file of the stage the row is for."""
    row: int
    digest: str
    """Of the row's prompt and columns."""
    prompt: Any
    completions: list
    finished: list[bool]
    scores: list[float | None]
    extra: dict[str, list] = field(default_factory=dict)

    def key(self) -> Key:
        return self.policy, self.file, self.row, self.digest


def key_of(policy: str, file: str, row: Row) -> Key:
    return policy, file, row.number, digest_of(row)


def digest_of(row: Row) -> str:
    content = json.dumps([row.prompt, row.columns], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def opinions(
    judge: Reward, rollout: Rollout, texts: Texts
) -> tuple[list[float | None], dict[str, list], dict[str, float]]:
    """A judge's scores of all answers, what else it says of each by column, and its metrics; of those that ended."""
    ended = rollout.finished_B.nonzero().flatten()
    if not len(ended):
        return [None] * len(rollout), {}, {}
    logged, said = {}, {}
    state = RewardState(0, log_metric=logged.__setitem__, log_extra=said.__setitem__)
    found = judge(rollout[ended], texts[ended], state).score_B.tolist()

    def all_of(values: list) -> list:
        there = dict(zip(ended.tolist(), values, strict=True))
        return [there.get(i) for i in range(len(rollout))]

    extra = {column: all_of(values) for column, values in said.items() if len(values) == len(ended)}
    return all_of([None if one != one else one for one in found]), extra, logged


class AnswersFile:
    """answers.jsonl, to be added to: what is added is on disk when `add` returns. Closed at the end of a `with`."""

    def __init__(self, path: Path, made_from: Mapping[str, Any]) -> None:
        self.path = path
        self.found: dict[Key, Judged] = {}
        self.stream = path.open("w", encoding="utf-8")
        self._write([{"made_from": made_from}])

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self.stream.close()

    def add(self, judged: list[Judged]) -> None:
        self._write([dataclasses.asdict(one) for one in judged])
        self.found |= {one.key(): one for one in judged}

    def of(self, policy: str) -> list[Judged]:
        """What a policy answered."""
        return [one for one in self.found.values() if one.policy == policy]

    def _write(self, lines: list[dict]) -> None:
        self.stream.write("".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines))
        self.stream.flush()


def read(folder: str, made_from: Mapping[str, Any]) -> dict[Key, Judged]:
    """The judged answers that a stage left in its folder; a last line that was cut off is left out.

    Raises AlignError for a folder without them, and where they were made from something else than `made_from`, by key;
    what is not known yet is not in it.
    """
    said = f"preferences.resume={folder}"
    file = Path(folder).expanduser() / ANSWERS
    try:
        whole = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        lines = [json.loads(line) for line in whole]
        theirs, judged = lines[0]["made_from"], [Judged(**line) for line in lines[1:]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        problem = f"{file} cannot be read as judged answers ({type(error).__name__}: {error})"
        if not file.exists():
            problem = f"there is no {ANSWERS} in it" if file.parent.is_dir() else "there is no such folder"
        raise AlignError(
            f"{said}: {problem}\n"
            "  write the folder of this stage in a run that was stopped, such as runs/NAME/latest/preferences"
        ) from error
    for key, mine in made_from.items():
        if theirs.get(key) != mine:
            raise AlignError(
                f"{said}: its answers were made with {key}={theirs.get(key)}, and this run has {key}={mine}\n"
                "  write the same settings, or leave preferences.resume out"
            )
    return {one.key(): one for one in judged}
