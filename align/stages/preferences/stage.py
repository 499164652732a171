r"""Stage `preferences`: completions of policies for each prompt, ranked by a judge, for rm, dpo, kto and best_of.

    align stages=[preferences,dpo] model=FOLDER data@preferences.data=prompts preferences.data.path=prompts.jsonl \
        reward@preferences.judge=fn preferences.judge.fn=my_rewards.brevity data@dpo.data=sampled

Each policy writes `samples` completions of a prompt, by the run's rollout engine at `rollout.temperature`; the judge is
any reward. rankings.jsonl has the training prompts' completions with their scores, held_out.jsonl those of held-out
prompts. A completion without a stop token at its end is in neither, since a file of texts cannot show that; one that
comes twice is there once.

completions.jsonl has all completions, as they are judged. After a stop, by Ctrl-C or a judge that went away, the same
command with preferences.resume=runs/NAME/latest/preferences continues there; its files are those of one whole run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import PreTrainedTokenizerBase

from align.config.leaves import leaves
from align.data.encode import fitting_prompts
from align.data.files import HELD_OUT, RANKINGS
from align.data.source import Source, check_held_out
from align.errors import AlignError
from align.plan.plan import StagePlan
from align.plan.runtime import Runtime
from align.ppo.rollouts import Row, row_of, spread, texts_of, write
from align.report.json_text import json_text
from align.report.report import StageReport
from align.rewards.model import check_same_tokenizer
from align.roles.alone import load_policy
from align.roles.folder import CAUSAL, base_home, inspect
from align.roles.tokenizer import load_tokenizer, stop_ids
from align.stages.fingerprint import fingerprint
from align.stages.preferences.spec import PreferencesOptions
from align.types import Reward, RewardState, Rollout, RolloutEngine, Sampling, Texts
from align.words import counted

PROMPTS_AT_ONCE = 64
"""Prompts that an engine is handed together."""
JUDGED_AT_ONCE = 8
"""Prompts whose completions are judged, and then on disk, together."""
MANY = 0.1
"""Prompts left out, a ranked one, above which a remedy is named."""


@dataclass
class Preferences:
    options: PreferencesOptions
    data: Source
    seed: int
    device: torch.device
    sampling: tuple[float, int]
    """Temperature, and the most tokens of a completion."""
    judge: Callable[[], dict[str, Any]]
    """Facts that the judge's scores depend on, by key; after `check_judge`."""
    check_judge: Callable[[], None]
    make_judge: Callable[[dict[str, str], Path, StageReport, PreTrainedTokenizerBase], Reward]
    make_engine: Callable[[str, PreTrainedTokenizerBase, int, StageReport], RolloutEngine]
    """The rollout engine of the policy in a folder; for that many tokens of prompt and completion."""
    longest_prompt: Callable[[list[str]], int]
    """The most tokens of a prompt that the policies in these folders take."""

    def __post_init__(self) -> None:
        if self.options.resume is not None:  # runs/NAME/latest is another folder once this run has one
            resume = str(Path(self.options.resume).expanduser().resolve())
            self.options = dataclasses.replace(self.options, resume=resume)

    def check(self, inputs: dict[str, str]) -> None:
        self.data.check("preferences")
        self.check_judge()
        first = None
        for role, path in policies(inputs).items():
            inspect(path, "preferences.policies" if role != "actor" else "actor.path", CAUSAL)
            tokenizer = load_tokenizer(path, "preferences.policies")
            first = first or tokenizer
            check_same_tokenizer(tokenizer, first, "preferences.policies")
        self.longest_prompt(list(policies(inputs).values()))
        if self.options.samples * max(len(policies(inputs)), 1) < 2:
            raise AlignError("preferences.samples=1: one completion has nothing to be ranked against\n  use 2 or more")
        if self.options.resume is not None:
            read(self.options.resume, self._made_from(inputs))

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        paths = policies(inputs)
        tokenizer = load_tokenizer(next(iter(paths.values())), "preferences.policies")
        split = self.data.load("preferences", self.seed)
        longest = self.longest_prompt(list(paths.values()))
        parts, tallies = {}, []
        for part, found in ((RANKINGS, split.train), (HELD_OUT, split.eval)):
            found, left_out = fitting_prompts(found, tokenizer, longest, "preferences", held_out=part == HELD_OUT)
            rows = [row_of(number, row, ids) for number, row, ids in found]
            parts[part] = spread(rows, self.options.prompts or len(rows))
            tallies.append(left_out)
        report.tell(*split.tallies, *tallies)
        check_held_out(tallies[-1], split)
        made_from = self._made_from(inputs)
        earlier = {} if self.options.resume is None else read(self.options.resume, made_from)
        judge = self.make_judge(inputs, out, report, tokenizer)
        with opened(out / COMPLETIONS, made_from, report) as file:
            for name, path in paths.items():
                wanted = {key_of(name, part, row): (part, row) for part, rows in parts.items() for row in rows}
                file.add([earlier[key] for key in wanted if key in earlier])
                todo = [one for key, one in wanted.items() if key not in earlier]
                if todo:
                    engine = self.make_engine(path, tokenizer, longest + self.sampling[1], report)
                    try:
                        self._sample(name, path, todo, file, engine, judge, tokenizer, report)
                    finally:
                        engine.close()
        facts = {part: written(out / part, part, rows, list(paths), file.found) for part, rows in parts.items() if rows}
        ranked, why = facts[RANKINGS], self._why(facts[RANKINGS])
        if not ranked["prompts"]:
            raise AlignError(f"preferences: no prompt has two completions to rank; {why}")
        each = ranked["completions"] / ranked["prompts"]
        report.say(f"{counted(ranked['prompts'], 'prompt')} ranked, {each:.1f} completions each")
        if left_out := sum(ranked["left_out"].values()):
            report.say(f"{left_out} of {ranked['prompts'] + left_out} prompts left out: {why}")
        by_policy = {name: figures(counts(file.of(name))) for name in paths}
        report.write_card(inputs=inputs, policies=by_policy, **{Path(part).stem: one for part, one in facts.items()})

    def _made_from(self, inputs: dict[str, str]) -> dict[str, Any]:
        """Facts that completions and scores depend on beside their row, as far as they are known."""
        temperature, max_new_tokens = self.sampling
        return {
            "seed": self.seed, "preferences.samples": self.options.samples, "rollout.temperature": temperature,
            "rollout.max_new_tokens": max_new_tokens, **self.judge(),
            **{f"weights of {name}": fingerprint(path) or path for name, path in inputs.items()},
        }  # fmt: skip

    def _why(self, ranked: dict[str, Any]) -> str:
        """Reasons why prompts were left out, and what to use for the most frequent reason where they are many."""
        reasons = {
            "cut": ("have fewer than two that ended", f"rollout.max_new_tokens={2 * self.sampling[1]}, or more"),
            "unscored": ("have fewer than two with a score", "another preferences.judge"),
            "alike": ("have completions scored alike", "more preferences.samples, or another preferences.judge"),
        }
        found = {name: count for name, count in ranked["left_out"].items() if count}
        words = ", ".join(f"{count} {reasons[name][0]}" for name, count in found.items())
        few = sum(found.values()) < MANY * ranked["prompts"]
        return words if few else f"{words}\n  use {reasons[max(found, key=found.__getitem__)][1]}"

    def _sample(
        self, name: str, path: str, todo: list[tuple[str, Row]], file: CompletionsFile,
        engine: RolloutEngine, judge: Reward, tokenizer: PreTrainedTokenizerBase, report: StageReport,
    ) -> None:  # fmt: skip
        """Write, judge and keep one policy's completions of rows, each with the file that it is for."""
        sampling = Sampling(self.sampling[0], self.sampling[1], stop_ids(path, tokenizer))
        so_far = counts(file.of(name))
        total = sum(math.ceil(len(rows) / JUDGED_AT_ONCE) for _, rows in chunked(todo))
        with report.steps(total) as tell:
            for number, (part, rows, rollout) in enumerate(self._rollouts(name, todo, engine, sampling), start=1):
                texts = texts_of(rollout, tokenizer)
                scores, extra, logged = opinions(judge, rollout, texts)
                judged = []
                for i, row in enumerate(rows):
                    own = slice(i * self.options.samples, (i + 1) * self.options.samples)
                    judged.append(
                        Judged(
                            name, part, row.number, digest_of(row), row.prompt, texts.completions[own],
                            rollout.finished_B[own].tolist(), scores[own],
                            {column: values[own] for column, values in extra.items()},
                        )
                    )  # fmt: skip
                file.add(judged)
                so_far.update(counts(judged))
                found = figures(so_far)
                report.metrics(number, {"policy": name, **found, **logged})
                score = f"score {found['score']:+.2f}, " if found["judged"] else ""
                tell(number, f"{score}{found['finished']:.0%} of the completions ended")
                if number == math.ceil(PROMPTS_AT_ONCE / JUDGED_AT_ONCE) and not found["finished"]:
                    report.say(
                        f"warning: none of {found['completions']} completions ended within rollout.max_new_tokens="
                        f"{self.sampling[1]}, and all are left out; use more, or another policy"
                    )

    def _rollouts(
        self, name: str, todo: list[tuple[str, Row]], engine: RolloutEngine, sampling: Sampling
    ) -> Iterator[tuple[str, list[Row], Rollout]]:
        """Completions of JUDGED_AT_ONCE rows at most, with the file that they are for and these rows."""
        samples = self.options.samples
        for part, rows in chunked(todo):
            purpose = f"preferences/{part}/{name}"
            rollout = write(engine, rows, sampling, seed=self.seed, purpose=purpose, samples=samples).to(self.device)
            for first in range(0, len(rows), JUDGED_AT_ONCE):
                some = rows[first : first + JUDGED_AT_ONCE]
                yield part, some, rollout[torch.arange(first * samples, (first + len(some)) * samples)]


HOW_ASKED = {"url", "timeout", "retries", "headers", "concurrency", "batch_size", "max_unread"}
"""Settings of a judge that change no score."""


def build(stage: StagePlan, runtime: Runtime) -> Preferences:
    options, rollout = stage.options, stage.sections.rollout.options
    settings = leaves(options.judge.plain(), "preferences.judge.")
    scores_by = {key: one for key, one in settings if one != {} and HOW_ASKED.isdisjoint(key.split("."))}

    def make_engine(path: str, tokenizer: PreTrainedTokenizerBase, longest: int, report: StageReport) -> RolloutEngine:
        policy = load_policy(path, "preferences.policies", runtime.device)
        engine = runtime.rollout_engine(stage, policy, base_home(path), tokenizer, longest, report)
        engine.attach(policy)
        return engine

    return Preferences(
        options, runtime.data(options.data), runtime.seed, runtime.device,
        (rollout.temperature, rollout.max_new_tokens), lambda: scores_by | code_of(scores_by), make_engine=make_engine,
        longest_prompt=runtime.longest_prompt(stage), **runtime.judge(options.judge, stage),
    )  # fmt: skip


def code_of(settings: dict[str, Any]) -> dict[str, str]:
    """A hash of each file with a function that a judge calls, by its name; of functions that are imported."""
    named = [str(value).rpartition(".")[0] for key, value in settings.items() if key.endswith((".fn", ".fn._target_"))]
    files = {getattr(sys.modules.get(module), "__file__", None) for module in named} - {None}
    return {Path(file).name: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files}


def chunked(todo: list[tuple[str, Row]]) -> Iterator[tuple[str, list[Row]]]:
    """Rows for one file, PROMPTS_AT_ONCE at a time."""
    for part, group in itertools.groupby(todo, lambda one: one[0]):
        rows = [row for _, row in group]
        for first in range(0, len(rows), PROMPTS_AT_ONCE):
            yield part, rows[first : first + PROMPTS_AT_ONCE]


def counts(judged: list[Judged]) -> Counter[str]:
    """Number of completions, of those that ended and of those with a score, and the sum of the scores."""
    scores = [score for one in judged for score in one.scores if score is not None]
    return Counter(
        completions=sum(len(one.finished) for one in judged), ended=sum(sum(one.finished) for one in judged),
        scored=len(scores), score=sum(scores),
    )  # fmt: skip


def figures(counted: Counter[str]) -> dict[str, float | None]:
    """Mean score of the completions that have one, number of completions, share that ended and share with a score."""
    total, scored = counted["completions"], counted["scored"]
    return {
        "score": counted["score"] / scored if scored else None, "completions": total,
        "finished": counted["ended"] / total, "judged": scored / total,
    }  # fmt: skip


def policies(inputs: dict[str, str]) -> dict[str, str]:
    """The policies among the inputs, by name."""
    return {name: path for name, path in inputs.items() if name == "actor" or name.startswith("policy_")}


def written(path: Path, part: str, rows: list[Row], policies: list[str], found: dict[Key, Judged]) -> dict[str, Any]:
    """Write a line for each prompt with a preference, if any has one; counts of prompts and completions, for the card.

    `left_out` counts the other prompts by reason: `cut`, `unscored`, `alike`.
    """
    lines, left_out = [], {"cut": 0, "unscored": 0, "alike": 0}
    for row in rows:
        judged = [found[key_of(name, part, row)] for name in policies]
        line = ranked(judged)
        if len(set(line["scores"])) > 1:
            lines.append(line)
        else:
            left_out[lack(judged)] += 1
    if lines:  # an empty file is no data set
        text = "".join(json_text(line, data=True, ensure_ascii=False) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return {
        "prompts": len(lines), "completions": sum(len(line["completions"]) for line in lines), "left_out": left_out,
    }  # fmt: skip


def ranked(judged: list[Judged]) -> dict[str, Any]:
    """All policies' completions of one prompt that have a score, each once."""
    distinct = {}
    for one in judged:
        for completion, score in zip(one.completions, one.scores, strict=True):
            if score is not None:
                distinct[json.dumps(completion)] = (completion, score, one.policy)
    columns = list(zip(*distinct.values(), strict=True)) or [(), (), ()]
    by = {"policies": list(columns[2])} if len(judged) > 1 else {}
    return {"prompt": judged[0].prompt, "completions": list(columns[0]), "scores": list(columns[1]), **by}


def lack(judged: list[Judged]) -> str:
    """Reason why completions of one prompt make no ranking: cut, unscored or alike."""
    if sum(sum(one.finished) for one in judged) < 2:
        return "cut"
    scores = [score for one in judged for score in one.scores if score is not None]
    return "unscored" if len(scores) < 2 else "alike"


COMPLETIONS = "completions.jsonl"
Key = tuple[str, str, int, str]


@dataclass
class Judged:
    """A policy's completions of a row with the judge's scores and, in `extra`, its other columns.

    A score is None where the judge has no opinion, and where a completion did not end, which is not judged.
    """

    policy: str
    file: str
    """File of the stage that the row is for."""
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
    """A judge's scores of the completions, its other columns and its metrics; None for completions that did not end."""
    ended = rollout.finished_B.nonzero().flatten()
    if not len(ended):
        return [None] * len(rollout), {}, {}
    logged, columns = {}, {}
    state = RewardState(0, log_metric=logged.__setitem__, log_extra=columns.__setitem__)
    found = judge(rollout[ended], texts[ended], state).score_B.tolist()

    def all_of(values: list) -> list:
        there = dict(zip(ended.tolist(), values, strict=True))
        return [there.get(i) for i in range(len(rollout))]

    extra = {column: all_of(values) for column, values in columns.items() if len(values) == len(ended)}
    return all_of([None if one != one else one for one in found]), extra, logged


class CompletionsFile:
    """completions.jsonl while it is written: rows are on disk when `add` returns."""

    def __init__(self, stream: TextIO, made_from: Mapping[str, Any]) -> None:
        self.found: dict[Key, Judged] = {}
        self.stream = stream
        self._write([{"made_from": made_from}])

    def add(self, judged: list[Judged]) -> None:
        self._write([dataclasses.asdict(one) for one in judged])
        self.found |= {one.key(): one for one in judged}

    def of(self, policy: str) -> list[Judged]:
        """Judged completions of a policy."""
        return [one for one in self.found.values() if one.policy == policy]

    def _write(self, lines: list[dict]) -> None:
        self.stream.write("".join(json_text(line, data=True, ensure_ascii=False, default=str) + "\n" for line in lines))
        self.stream.flush()


@contextmanager
def opened(path: Path, made_from: Mapping[str, Any], report: StageReport) -> Iterator[CompletionsFile]:
    """The file for completions that are judged; a line on what is kept if the block raises."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as stream:  # half a character, as json escapes it
        file = CompletionsFile(stream, made_from)
        try:
            yield file
        except BaseException as stopped:  # Ctrl-C, too
            if file.found:
                prompts = counted(len(file.found), "prompt")
                report.say(
                    f"stopped; completions of {prompts} are judged and kept: the same command goes on "
                    f"with preferences.resume={path.parent}"
                )
            elif isinstance(stopped, KeyboardInterrupt):
                report.say("stopped before the first completions were judged: nothing is kept")
            raise


def read(folder: str, made_from: Mapping[str, Any]) -> dict[Key, Judged]:
    """The judged completions that a stage left in its folder, without a last line that was cut off.

    Raises AlignError for a folder without them, and where a fact of `made_from` differs; facts that are not known yet
    are not in it.
    """
    setting = f"preferences.resume={folder}"
    file = Path(folder).expanduser() / COMPLETIONS
    try:
        whole = file.read_text(encoding="utf-8").split("\n")[:-1]  # splitlines also parts at U+2028
        lines = [json.loads(line) for line in whole]
        theirs, judged = lines[0]["made_from"], [Judged(**line) for line in lines[1:]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        problem = f"{file} cannot be read as judged completions ({type(error).__name__}: {error})"
        if not file.exists():
            problem = f"there is no {COMPLETIONS} in it" if file.parent.is_dir() else "there is no such folder"
        raise AlignError(
            f"{setting}: {problem}\n"
            "  use the folder of this stage in a run that was stopped, such as runs/NAME/latest/preferences"
        ) from error
    for key, mine in made_from.items():
        if theirs.get(key) != mine:
            raise AlignError(
                f"{setting}: its completions were made with {key}={theirs.get(key)}, and this run has {key}={mine}\n"
                "  use the same settings, or leave preferences.resume out"
            )
    return {one.key(): one for one in judged}
