r"""Stage `preferences`: a policy's own answers to each prompt, ranked by a judge, for rm, dpo, kto and best_of.

    align stages=[preferences,dpo] model=FOLDER data@preferences.data=prompts preferences.data.path=prompts.jsonl \
        reward@preferences.judge=fn preferences.judge.fn=my_rewards.brevity data@dpo.data=sampled

Each policy writes `samples` answers to a prompt, by the run's rollout engine at `rollout.temperature`; the judge is any
reward. rankings.jsonl has the training prompts' answers with their scores, held_out.jsonl those of held-out prompts. An
answer that did not end by itself is left out, since a file of texts cannot say so, and so is one written twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from align import config
from align.data.encode import fitting_prompts
from align.data.sampled import HELD_OUT, RANKINGS
from align.data.source import Source
from align.errors import AlignError
from align.report.report import StageReport
from align.rewards.model import check_same_tokenizer
from align.roles.folder import CAUSAL, inspect
from align.roles.tokenizer import load_tokenizer, stop_ids
from align.stages.rollouts import Row, row_of, spread, texts_of, write
from align.types import Reward, RewardState, RolloutEngine, Sampling

PROMPTS_AT_ONCE = 64


@dataclass
class Answer:
    policy: str
    completion: Any
    score: float


@dataclass
class Preferences:
    options: config.Preferences
    data: Source
    seed: int
    device: torch.device
    sampling: tuple[float, int]
    """Temperature, and the most tokens of an answer."""
    check_judge: Callable[[], None]
    make_judge: Callable[[dict[str, str], Path, StageReport, PreTrainedTokenizerBase], Reward]
    make_engine: Callable[[str, PreTrainedTokenizerBase, int, StageReport], RolloutEngine]
    """The rollout engine of the policy in a folder; for that many tokens of prompt and answer."""

    def check(self, inputs: dict[str, str]) -> None:
        self.data.check("preferences")
        self.check_judge()
        first = None
        for role, path in policies(inputs).items():
            inspect(path, "preferences.policies" if role != "actor" else "actor.path", CAUSAL)
            tokenizer = load_tokenizer(path, "preferences.policies")
            first = first or tokenizer
            check_same_tokenizer(tokenizer, first, "preferences.policies")
        if self.options.samples * max(len(policies(inputs)), 1) < 2:
            raise AlignError("preferences.samples=1: one answer has nothing to be ranked against\n  write 2 or more")

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        paths = policies(inputs)
        tokenizer = load_tokenizer(next(iter(paths.values())), "preferences.policies")
        split = self.data.load("preferences", self.seed)
        parts = {RANKINGS: self._rows(split.train, tokenizer, report)}
        parts[HELD_OUT] = self._rows(split.eval, tokenizer, report) if split.eval else []
        judge = self.make_judge(inputs, out, report, tokenizer)
        answers: dict[str, list[list[Answer]]] = {file: [[] for _ in rows] for file, rows in parts.items()}
        figures: dict[str, dict[str, float]] = {}
        for name, path in paths.items():
            longest = self.options.max_prompt_tokens + self.sampling[1]
            engine = self.make_engine(path, tokenizer, longest, report)
            try:
                figures[name] = self._answer(name, path, parts, answers, engine, judge, tokenizer, report)
            finally:
                engine.close()
        facts = {file: written(out / file, rows, answers[file], len(paths) > 1) for file, rows in parts.items() if rows}
        if not facts[RANKINGS]["prompts"]:
            raise AlignError(
                "preferences: no prompt has two answers that ended and were scored apart\n"
                "  write a longer rollout.max_new_tokens, more preferences.samples, or another judge"
            )
        told = facts[RANKINGS]
        report.say(f"{told['prompts']} prompts ranked, {told['answers'] / told['prompts']:.1f} answers each")
        report.write_card(inputs=inputs, policies=figures, **{Path(file).stem: one for file, one in facts.items()})

    def _rows(self, rows: list[dict], tokenizer: PreTrainedTokenizerBase, report: StageReport) -> list[Row]:
        fitting, left_out = fitting_prompts(rows, tokenizer, self.options.max_prompt_tokens, "preferences")
        if left_out:
            most = f"preferences.max_prompt_tokens={self.options.max_prompt_tokens}"
            report.say(f"{left_out} prompts left out: over {most}")
        found = [row_of(number, row, ids) for number, row, ids in fitting]
        return spread(found, self.options.prompts or len(found))

    def _answer(
        self, name: str, path: str, parts: dict[str, list[Row]], answers: dict[str, list[list[Answer]]],
        engine: RolloutEngine, judge: Reward, tokenizer: PreTrainedTokenizerBase, report: StageReport,
    ) -> dict[str, float]:  # fmt: skip
        """One policy's answers to every prompt, judged; its figures."""
        sampling = Sampling(self.sampling[0], self.sampling[1], stop_ids(path, tokenizer))
        score, count, ended, done = 0.0, 0, 0, 0
        chunks = [(file, first) for file, rows in parts.items() for first in range(0, len(rows), PROMPTS_AT_ONCE)]
        with report.steps(len(chunks)) as tell:
            for number, (file, first) in enumerate(chunks, start=1):
                rows = parts[file][first : first + PROMPTS_AT_ONCE]
                purpose = f"preferences/{file}/{name}"
                rollout = write(
                    engine, rows, sampling, seed=self.seed, purpose=purpose, samples=self.options.samples
                ).to(self.device)
                texts = texts_of(rollout, tokenizer)
                score_B = judge(rollout, texts, RewardState(0)).score_B.tolist()
                finished_B = rollout.finished_B.tolist()
                for i, (one, text, ends) in enumerate(zip(score_B, texts.completions, finished_B, strict=True)):
                    if ends and one == one:  # not NaN: the judge has an opinion
                        answers[file][first + i // self.options.samples].append(Answer(name, text, one))
                        score, count = score + one, count + 1
                    ended += ends
                done += len(score_B)
                tell(number, f"score {score / max(count, 1):+.2f}")
        return {"score": score / max(count, 1), "answers": done, "finished": ended / done, "judged": count / done}


def policies(inputs: dict[str, str]) -> dict[str, str]:
    """Those who answer, by name."""
    return {name: path for name, path in inputs.items() if name == "actor" or name.startswith("policy_")}


def written(file: Path, rows: list[Row], answers: list[list[Answer]], named: bool) -> dict[str, int]:
    """Writes a line a prompt that has a preference in it; how many prompts and answers there are, how many tie."""
    lines = list(_lines(rows, answers, named))
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return {
        "prompts": len(lines), "answers": sum(len(line["completions"]) for line in lines),
        "left_out": len(rows) - len(lines),
    }  # fmt: skip


def _lines(rows: list[Row], answers: list[list[Answer]], named: bool) -> Iterator[dict[str, Any]]:
    for row, found in zip(rows, answers, strict=True):
        distinct = list({json.dumps(one.completion): one for one in found}.values())
        if len({one.score for one in distinct}) < 2:
            continue
        by = {"policies": [one.policy for one in distinct]} if named else {}
        yield {
            "prompt": row.prompt, "completions": [one.completion for one in distinct],
            "scores": [one.score for one in distinct], **by,
        }  # fmt: skip
