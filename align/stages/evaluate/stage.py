"""Stage `evaluate`: the policies of a run on the same held-out prompts, side by side.

    align stages=[evaluate] data@ppo.data=prompts ppo.data.path=FILE actor.path=runs/NAME/latest/ppo

Each policy writes `samples` completions at temperature 1, with the same keys. They are scored by the judge
where one is named (`evaluate.judge`, a rule that scores a completion), by the run's reward, and by the reward model
where the reward is not that model alone.
KL is k1 in nats a completion, of each policy's own completions, to the reference of the run's last stage that has one,
else to sft.
completions.jsonl has what they wrote, with the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column, Table
from transformers import PreTrainedTokenizerBase

from align import ops
from align.data.encode import Prompt, completion_as, fitting_pairs, fitting_prompts, text_of
from align.data.files import located
from align.data.formats import as_pairs
from align.data.source import Source, Split
from align.engine.linear import give_kernel
from align.errors import AlignError
from align.imports import resolve
from align.plan.plan import StagePlan
from align.plan.rewards import MODEL, takes_this_runs_model
from align.plan.runtime import Runtime
from align.ppo.rollouts import Row, row_of, texts_of
from align.report.json_text import json_text
from align.report.report import StageReport
from align.roles.alone import load_policy
from align.roles.folder import CAUSAL, SCORE, inspect
from align.roles.loading import load_frozen
from align.roles.modules import ScoreModule, by_length, score_rollout
from align.roles.policy import TrainedPolicy
from align.roles.tokenizer import load_tokenizer
from align.stages.evaluate import completions
from align.stages.evaluate.spec import EvaluateOptions
from align.stages.rm.quality import sampled, score_pairs, swapped
from align.types import Reward, RewardState, Rollout, Texts
from align.words import counted

NO_POLICY = ("rm", "samples", "reference")
"""Inputs that are no policy."""


@dataclass
class Evaluate:
    options: EvaluateOptions
    data: Source | None
    """Prompts to complete; None where no policy is to write completions."""
    demonstrations: Source | None
    """Prompts with reference completions."""
    general: Source | None
    """Text whose loss is taken."""
    pairs: Source | None
    """Source of held-out pairs for the reward model."""
    make_reward: Callable[[dict[str, str], Path, StageReport, PreTrainedTokenizerBase], Reward | None]
    """The run's own reward; None where it takes a reward model that is not there."""
    max_pair_tokens: int
    """Longer held-out pairs are left out, as in the training of the reward model."""
    max_new_tokens: int
    longest_prompt: Callable[[list[str]], int]
    """The most tokens of a prompt that the policies in these folders take."""
    seed: int
    device: torch.device
    ppo_steps: int = 0
    """Steps of PPO after which the reward is taken, where it changes with them."""
    reward_is_model: bool = False
    """The run's reward is one reward model, so that the column `score` has its scores already."""

    def check(self, inputs: dict[str, str]) -> None:
        for source, purpose in ((self.data, "ppo"), (self.demonstrations, "sft")):
            if source is not None:
                source.check(purpose)
        self._general()
        completions.check_metrics(self.options)
        if rows := self._demonstrations():
            rows.prompts(max(self.options.shots), self.seed)
            if "accuracy" in rows.metrics:
                completions.labels_of(rows)
        for name in policies_of(inputs):
            inspect(inputs[name], "actor.path", CAUSAL)
        if "reference" in inputs:
            inspect(inputs["reference"], "reference.path", CAUSAL)
        if self.data is not None:
            self.longest_prompt([inputs[name] for name in policies_of(inputs)])
            self._check_judge(self._held_out())

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        names = policies_of(inputs)
        tokenizer = load_tokenizer(inputs[names[-1]], "evaluate")
        rows = self._rows([inputs[name] for name in names], tokenizer, report) if self.data else []
        reward = self.make_reward(inputs, out, report, tokenizer) if rows else None
        model = self._reward_model(inputs) if rows and not (reward and self.reward_is_model) else None
        references, general = self._demonstrations(), self._general()
        results: dict[str, dict[str, float]] = {}
        texts: dict[str, Texts] = {}
        reference = (
            load_policy(inputs["reference"], "reference.path", self.device) if self._measures_kl(inputs) else None
        )
        generation = self.max_new_tokens, self.options.batch_size, self.seed
        for name in names:
            same = reference is not None and inputs[name] == inputs["reference"]
            policy = reference if same else load_policy(inputs[name], "actor.path", self.device)
            results[name] = {}
            if rows:
                rollout = sampled(policy, inputs[name], rows, tokenizer, *generation, "evaluate")
                texts[name] = texts_of(rollout, tokenizer)
                results[name], scores = self._judge(rollout, texts[name], reward, model)
                write_completions(out / COMPLETIONS, name, texts[name], rollout.finished_B.tolist(), scores)
                if reference is not None and name in moved(inputs):
                    results[name]["kl"] = kl(policy, reference, rollout)
            if general:
                loss = completions.text_loss(policy, general, tokenizer, self.options.batch_size)
                results[name]["general_loss"] = loss
            several = self.options.shots if name == names[0] else [0]
            for shots in several if references else []:
                figures = results.setdefault(f"{name}, {shots} shots" if shots else name, {})
                figures |= completions.figures_of(policy, inputs[name], references, shots, tokenizer, *generation)
        for name, figures in results.items():
            report.metrics(0, {f"{name}/{key}": value for key, value in figures.items()})
            check_finite(name, figures)
        results = {name: figures for name, figures in results.items() if figures}
        facts = {"policies": results, "samples": self.options.samples, "split": self.options.split}
        del reward
        if rows and "rm" in inputs and self.pairs is not None:
            facts |= self._judge_reward(
                model or self._reward_model(inputs), tokenizer, located(self.pairs, inputs), report
            )
        report.write_card(inputs=inputs, **facts)
        self._tell(report, results, texts, facts, inputs)

    def _measures_kl(self, inputs: dict[str, str]) -> bool:
        return self.data is not None and bool(moved(inputs))

    def _tell(
        self, report: StageReport, results: dict, texts: dict[str, Texts], facts: dict[str, Any], inputs: dict[str, str]
    ) -> None:
        title = f"{counted(self.options.samples, 'completion')} a policy, held-out prompts"
        if any("kl" in figures for figures in results.values()):
            same = (name for name in policies_of(inputs) if inputs[name] == inputs["reference"])
            title += f"; KL to the reference, {next(same, inputs['reference'])}, in nats a completion"
        report.print(results_table(results, title if texts else "held-out demonstrations"))
        if "reward_accuracy" in facts:
            swap = facts["swap_accuracy"]
            report.say(
                f"reward model on held-out pairs: accuracy {facts['reward_accuracy']:.3f}"
                + ("" if swap is None else f", swap test {swap:.3f}")
            )
        if self.options.show and texts:
            report.print(completions_table(texts, self.options.show))

    def _demonstrations(self) -> completions.Demonstrations | None:
        """The held-out demonstrations; None where `evaluate.shots` is empty."""
        if self.demonstrations is None:
            return None
        split = self.demonstrations.load("sft", self.seed)
        rows = self._part(split)
        if not rows:
            raise AlignError(
                "evaluate.shots: sft.data has no held-out rows\n  use sft.data.eval_share=0.05, or evaluate.shots=[]"
            )
        rows, examples = completions.demonstrations(rows), completions.demonstrations(split.train)
        options = self.options
        return completions.Demonstrations(rows, examples, list(options.metrics), options.pattern, options.schema)

    def _general(self) -> list[str]:
        return [] if self.general is None else completions.general_texts(self.general, self.seed, self._part)

    def _part(self, split: Split) -> list[dict]:
        """The held-out rows that decide."""
        return (split.test if self.options.split == "test" else split.eval) or split.eval

    def _rows(self, policies: list[str], tokenizer: PreTrainedTokenizerBase, report: StageReport) -> list[Row]:
        """Held-out prompts, round and round until there are `samples` of them."""
        fitting, tally = fitting_prompts(self._held_out(), tokenizer, self.longest_prompt(policies), "ppo")
        report.tell(replace(tally, noun="held-out prompts"))
        fitting = [row_of(number, row, ids) for number, row, ids in fitting]
        return [fitting[i % len(fitting)] for i in range(self.options.samples)]

    def _held_out(self) -> list[dict]:
        """The held-out prompts that decide. Raises AlignError where there are none."""
        if rows := self._part(self.data.load("ppo", self.seed)):
            return rows
        raise AlignError(
            "ppo.data: it has no held-out prompts to evaluate on\n"
            "  use ppo.data.eval_share=0.05, or evaluate.judge=null and no stage evaluate"
        )

    def _check_judge(self, rows: list[dict]) -> None:
        """Raise AlignError where the judge fails on the first prompt: a rule for other prompts, or other columns."""
        if judge := load_judge(self.options.judge):
            prompt = rows[0]["prompt"]
            self._judged(judge, prompt, completion_as(prompt, " yes"), True)

    def _reward_model(self, inputs: dict[str, str]) -> ScoreModule | None:
        if "rm" not in inputs:
            return None
        model = load_frozen(inspect(inputs["rm"], "reward.path", SCORE))
        give_kernel(model)
        return ScoreModule(model).to(self.device)

    def _judge(
        self, rollout: Rollout, texts: Texts, reward: Reward | None, model: ScoreModule | None
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Means over the completions of a policy, and the scores of each."""
        figures = {
            "length": float(rollout.response_mask_BT.sum(1).float().mean()),
            "finished": float(rollout.finished_B.float().mean()),
        }
        if self.options.diversity:
            figures |= completions.diversity(rollout, [text_of(one) for one in texts.completions])
        scores: dict[str, list[float]] = {}
        if reward is not None:
            scores["score"] = reward(rollout, texts, RewardState(self.ppo_steps)).score_B.tolist()
        if model is not None:
            scores["reward_model"] = score_rollout(model, rollout).tolist()
        if rule := load_judge(self.options.judge):
            rows = zip(texts.prompts, texts.completions, rollout.finished_B.tolist(), strict=True)
            parts = [self._judged(rule, *row) for row in rows]
            scores |= {f"true_{part}": [one[part] for one in parts] for part in parts[0]}
        means = {name: float(torch.tensor(each, dtype=torch.float64).nanmean()) for name, each in scores.items()}
        return figures | {name: round(mean, 6) for name, mean in means.items()}, scores

    def _judged(self, judge: Callable, prompt: Prompt, completion: Prompt, finished: bool) -> dict[str, float]:
        try:
            return judge(prompt, completion, finished)
        except Exception as error:  # whatever a user's function raises
            raise AlignError(
                f"evaluate.judge={self.options.judge} fails on the prompt {str(prompt)[:80]!r}: "
                f"{type(error).__name__}: {error}\n  use evaluate.judge=null, or a judge of these prompts"
            ) from error

    def _judge_reward(
        self, model: ScoreModule, tokenizer: PreTrainedTokenizerBase, pairs: Source, report: StageReport
    ) -> dict[str, float]:
        split = pairs.load("rm", self.seed)
        test = self.options.split == "test" and bool(split.test)
        held_out = as_pairs(split.test if test else split.eval)
        if not held_out:  # ratings, none of which share a prompt
            return {}
        pairs, tally = fitting_pairs(held_out, tokenizer, self.max_pair_tokens, "rm", held_out=True)
        report.tell(tally)
        if not pairs:
            return {}
        swaps = (split.test_swaps if test else split.eval_swaps) or swapped(pairs)
        accuracy, swap = (
            float(score_pairs(model, some, tokenizer, self.device).right_B.mean()) if some else None
            for some in (pairs, swaps)
        )
        return {"reward_accuracy": accuracy, "swap_accuracy": swap}


def build(stage: StagePlan, runtime: Runtime) -> Evaluate:
    """The stage with the run's prompts of ppo, demonstrations of sft and pairs of rm."""
    options, sections = stage.options, stage.sections
    sft, rm, ppo = (sections.options_of(name) for name in ("sft", "rm", "ppo"))
    shots = options.shots if isinstance(options.shots, tuple) else (options.shots,)
    metrics = options.metrics if isinstance(options.metrics, tuple) else (options.metrics,)
    general = None if options.general is None else runtime.data(options.general)
    writes = options.judge is not None or options.diversity or "ppo" in stage.before or not (shots or general)
    return Evaluate(
        options=replace(options, shots=shots, metrics=metrics),
        data=runtime.data(ppo.data) if writes else None,
        demonstrations=runtime.data(sft.data) if shots else None,
        general=general,
        pairs=None if rm is None else runtime.data(rm.data),
        make_reward=_own_reward(stage, runtime),
        reward_is_model=stage.sections.reward.target == MODEL,
        ppo_steps=ppo.steps,
        max_pair_tokens=0 if rm is None else rm.max_length,
        max_new_tokens=sections.rollout.options.max_new_tokens,
        longest_prompt=runtime.longest_prompt(stage),
        seed=runtime.seed,
        device=runtime.device,
    )


def _own_reward(stage: StagePlan, runtime: Runtime) -> Callable[..., Any]:
    """make(inputs, …) -> the run's reward; None where it takes this run's reward model and there is none."""
    reward = stage.sections.reward
    make = runtime.reward_maker(reward, stage, told=False)

    def make_own(inputs: dict[str, str], *given: Any) -> Any:
        if takes_this_runs_model(reward) and "rm" not in inputs:
            return None
        return make({**inputs, "reward": inputs.get("rm")}, *given)

    return make_own


def check_finite(policy: str, figures: dict[str, float]) -> None:
    """Raise AlignError for a figure of a policy that is not finite; a score is not where no completion has one."""
    for name, value in figures.items():
        if name != "score" and not math.isfinite(value):
            raise AlignError(
                f"evaluate: {name} of {policy} is {value}\n  use policies and a reward model whose weights are finite"
            )


def policies_of(inputs: dict[str, str]) -> list[str]:
    """The names of the policies among the inputs."""
    return [name for name in inputs if name not in NO_POLICY]


def moved(inputs: dict[str, str]) -> list[str]:
    """The policies whose KL is measured: all but the reference and the model beneath the fine-tuned one."""
    reference = inputs.get("reference")
    return [name for name in policies_of(inputs) if reference and name != "base" and inputs[name] != reference]


@torch.no_grad()
def kl(policy: TrainedPolicy, reference: TrainedPolicy, rollout: Rollout) -> float:
    """k1 in nats a sequence: the mean log-ratio of the two policies on the first one's completions."""
    total = 0.0
    for rows in by_length(rollout.length_B(), 64):
        part = rollout[rows].trim()
        total += float(ops.kl(policy.logp_BT(part), reference.logp_BT(part), "k1").sum())
    return total / len(rollout)


def load_judge(name: str | None) -> Callable[[object, object, bool], dict[str, float]] | None:
    """The function `module.name(prompt, completion, finished) -> {"score": …, part: …}`."""
    if name is None:
        return None
    try:
        return resolve(name)
    except ValueError as error:
        raise AlignError(f"evaluate.judge={str(error).removeprefix('fn=')}") from error


COMPLETIONS = "completions.jsonl"
UNJUDGED = ("score", "reward_model", "kl", "length", "finished")
"""Figures of completions, in the order of their columns, behind the judge's and before all others."""
TITLES = {"true_score": "true score", "kl": "KL", "length": "tokens", "finished": "ended"}
WIDEST = 80
"""Characters of a table with a column a figure; a wider one has a row a figure."""


def results_table(results: dict[str, dict[str, float]], title: str | None = None) -> Table:
    """A row a policy, a column a figure: the judge's first, then scores, KL, tokens and share that ended.

    The other way round where the columns would be too many for a terminal.
    """
    names = dict.fromkeys(name for figures in results.values() for name in figures)
    judged = [name for name in names if name.startswith("true_")]
    others = [name for name in names if name not in judged and name not in UNJUDGED]
    figures = [*judged, *(name for name in UNJUDGED if name in names), *others]
    titles = [TITLES.get(name, name.removeprefix("true_").replace("_", " ")) for name in figures]
    cells = [[f"{row[name]:.2f}" if name in row else "" for name in figures] for row in results.values()]
    heads, lines, corner = titles, dict(zip(results, cells, strict=True)), "policy"
    if max(map(len, results), default=0) + sum(len(title) + 1 for title in titles) > WIDEST:
        heads, corner = list(results), ""
        lines = {name: list(column) for name, column in zip(titles, zip(*cells, strict=True), strict=True)}
    table = Table(corner, *[Column(head, justify="right") for head in heads], box=SIMPLE, padding=0, title=title)
    for name, row in lines.items():
        table.add_row(name, *row)
    return table


def completions_table(texts: dict[str, Texts], show: int) -> Table:
    """Prompts from all over the held-out ones, with each policy's completion."""
    first = next(iter(texts.values()))
    table = Table("prompt", *texts, show_lines=True)
    distinct = sorted({str(prompt): i for i, prompt in reversed(list(enumerate(first.prompts)))}.values())
    for i in distinct[:: max(len(distinct) // show, 1)][:show]:
        cells = [str(text.completions[i]).strip() for text in texts.values()]
        table.add_row(escape(str(first.prompts[i])), *map(escape, cells))
    return table


def write_completions(
    file: Path, policy: str, texts: Texts, finished: list[bool], scores: dict[str, list[float]]
) -> None:
    """Add a policy's completions to a file, a line each: policy, prompt, completion, finished (ended by itself), and
    the scores by their names in the table's figures."""
    with file.open("a", encoding="utf-8") as stream:
        for i, (prompt, completion, ended) in enumerate(zip(texts.prompts, texts.completions, finished, strict=True)):
            line = {"policy": policy, "prompt": prompt, "completion": completion, "finished": ended}
            line |= {name: each[i] for name, each in scores.items()}
            stream.write(json_text(line, ensure_ascii=False) + "\n")
