"""Stage `ppo`: the PPO loop over a data set of prompts, with evaluation, checkpoints and samples.

align stages=[ppo] actor.path=FOLDER data@ppo.data=prompts ppo.data.path=prompts.jsonl reward=fn reward.fn=my.reward
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from align.data.encode import fitting_prompts
from align.data.source import Source, check_held_out
from align.ppo.held_out import Best, Examiner, save
from align.ppo.options import PPOOptions
from align.ppo.reward_signal import Signal
from align.ppo.rollouts import Row, batches, further, row_of, spread, texts_of
from align.ppo.step import PPO
from align.ppo.watch import Watch, check_watched
from align.report.report import StageReport
from align.roles.tokenizer import load_tokenizer
from align.words import counted


@dataclass
class PPOStage:
    options: PPOOptions
    data: Source
    seed: int
    check_roles: Callable[[dict[str, str]], None]
    """Everything about the roles, the rollout and the reward that can be known before they load."""
    assemble: Callable[[dict[str, str], Path, StageReport, PreTrainedTokenizerBase], PPO]
    """Loads the roles, the rollout engine and the reward, and makes the loop of them."""
    longest_prompt: Callable[[list[str]], int]
    """The most tokens of a prompt that the actor in these folders takes."""
    make_watch: Callable[[dict[str, str], Path, StageReport, PreTrainedTokenizerBase], Watch] | None = None
    """Loads the judge that looks on; None: nobody does."""

    def check(self, inputs: dict[str, str]) -> None:
        self.data.check("ppo")
        self.check_roles(inputs)
        if self.make_watch:
            split = self.data.load("ppo", self.seed)
            check_watched(len(split.eval), len(split.train) + len(split.eval), self.options.eval_prompts)

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        tokenizer = load_tokenizer(inputs["actor"], "actor.path")
        split = self.data.load("ppo", self.seed)
        longest = self.longest_prompt([inputs["actor"]])
        rows, left_out = fitting_prompts(split.train, tokenizer, longest, "ppo")
        held_out, not_held_out = fitting_prompts(split.eval, tokenizer, longest, "ppo", held_out=True)
        report.tell(*split.tallies, left_out, not_held_out)
        check_held_out(not_held_out, split)
        rows, held_out = ([row_of(number, row, ids) for number, row, ids in part] for part in (rows, held_out))
        self._tell_held_out(len(held_out), len(rows), report)
        ppo = self.assemble(inputs, out, report, tokenizer)
        watch = self.make_watch(inputs, out, report, tokenizer) if self.make_watch else None
        report.write_card(inputs=inputs, rollout_engine=ppo.engine.name, prompts=len(rows))
        try:
            watched = spread(held_out, self.options.eval_prompts) if self.options.eval_every else []
            examiner = Examiner(watched, self.seed, Best(out / "best"), watch)
            self._loop(ppo, rows, examiner, out, report)
        finally:
            ppo.engine.close()
        examiner.leave(ppo, out, report)

    def _tell_held_out(self, held_out: int, trained_on: int, report: StageReport) -> None:
        """A line where held-out prompts are fewer than wanted. Raises AlignError where a watch has too few."""
        wanted = self.options.eval_prompts
        if self.options.eval_every and not held_out:
            report.say("ppo.eval_every: no held-out prompts (ppo.data.eval_share=0), nothing is evaluated")
        elif self.options.eval_every and held_out < wanted:
            report.say(f"ppo.eval_prompts={wanted}: no more than {counted(held_out, 'prompt')} held out")
        if self.make_watch and (warning := check_watched(held_out, trained_on + held_out, wanted)):
            report.say(warning)

    def _loop(self, ppo: PPO, rows: list[Row], examiner: Examiner, out: Path, report: StageReport) -> None:
        options = self.options
        prompts = options.batch_size // ppo.samples_per_prompt
        if len(rows) < prompts:
            report.say(
                f"{counted(len(rows), 'prompt')} for batches of {prompts}: each step goes round them more than once"
            )
        feed = batches(rows, prompts, self.seed)
        signal = Signal(options.steps, options.dynamic_sampling, ppo.roles.actor.model.dtype)
        if examiner.rows:
            report.metrics(0, examiner.see(ppo, report))
        with report.steps(options.steps) as tell:
            for step in range(1, options.steps + 1):
                batch = next(feed)
                metrics = ppo.step(batch, further(rows, batch, prompts, self.seed, step))
                if examiner.rows and step % options.eval_every == 0:
                    metrics |= examiner.see(ppo, report)
                if options.save_every and step % options.save_every == 0:
                    save(ppo, out / "checkpoints" / f"step-{step}")
                metrics |= {"episode": step * options.batch_size}
                report.metrics(step, metrics)
                if metrics["skipped"] == 1:
                    unscored = metrics["objective/unscored"] == len(ppo.last[0])
                    report.say(
                        f"step {step}: no completion has a {'score' if unscored else 'token'}, so nothing was trained"
                    )
                for warning in signal.see(step, ppo.last[1], metrics):
                    report.say(warning)
                tell(step, key_figures(metrics))
                if options.show_every and step % options.show_every == 0:
                    report.print(samples_table(ppo, step))
                if examiner.stops:
                    break
        last = {k: v for k, v in metrics.items() if "/" in k}
        report.write_card(**examiner.facts(), steps=ppo.steps_done, kl_coef=ppo.kl_coef, last=last)


def key_figures(metrics: dict[str, float]) -> str:
    words = ["no score"]
    if "objective/scores" in metrics:
        words = [f"score {metrics['objective/scores']:+.2f}", f"reward {metrics['objective/rlhf_reward']:+.2f}"]
    words += [f"KL {metrics['objective/kl']:.2f}", f"length {metrics['val/length']:.0f}"]
    if "eval/score" in metrics:
        words.append(f"held-out score {metrics['eval/score']:+.2f}")
    if "eval/judge" in metrics:
        words.append(f"judge {metrics['eval/judge']:+.2f}")
    return "  ".join(words)


def samples_table(ppo: PPO, step: int) -> Table:
    """Three samples of the last step with their scores."""
    rollout, scored = ppo.last
    table = Table("prompt", "completion", "score", title=f"samples at step {step}", show_lines=True)
    texts = texts_of(rollout, ppo.tokenizer)
    for i in range(min(3, len(rollout))):
        words = escape(str(texts.prompts[i])), escape(str(texts.completions[i]))
        table.add_row(*words, f"{float(scored.score_B[i]):+.2f}")
    return table
