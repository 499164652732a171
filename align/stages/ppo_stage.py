"""Stage `ppo`: the PPO loop over a data set of prompts, with evaluation, checkpoints and samples.

align stages=[ppo] actor.path=FOLDER data@ppo.data=prompts ppo.data.path=prompts.jsonl reward=fn reward.fn=my.reward
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from align import config
from align.data.encode import fitting_prompts
from align.data.source import Source
from align.report.report import StageReport
from align.rewards.parts import learned
from align.roles.tokenizer import load_tokenizer
from align.stages.ppo import PPO
from align.stages.rollouts import Row, batches, further, row_of, spread, texts_of, write
from align.stages.scoring import judge_rollout

STATE_FILE = "ppo_state.json"


@dataclass
class PPOStage:
    options: config.PPO
    data: Source
    seed: int
    check_roles: Callable[[dict[str, str]], None]
    """Everything about the roles, the rollout and the reward that can be known before they load."""
    assemble: Callable[[dict[str, str], Path, StageReport], PPO]
    """Loads the roles, the rollout engine and the reward, and makes the loop of them."""

    def check(self, inputs: dict[str, str]) -> None:
        self.data.check("ppo")
        self.check_roles(inputs)

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        tokenizer = load_tokenizer(inputs["actor"], "actor.path")
        split = self.data.load("ppo", self.seed)
        rows = self._rows(split.train, tokenizer, report)
        held_out = self._rows(split.eval, tokenizer, report) if split.eval else []
        ppo = self.assemble(inputs, out, report)
        report.write_card(inputs=inputs, rollout_engine=ppo.engine.name, prompts=len(rows))
        try:
            self._loop(ppo, rows, held_out, out, report)
        finally:
            ppo.engine.close()
        save(ppo, out)

    def _loop(self, ppo: PPO, rows: list[Row], held_out: list[Row], out: Path, report: StageReport) -> None:
        options, best = self.options, Best(out / "best")
        prompts = options.batch_size // ppo.samples_per_prompt
        if len(rows) < prompts:
            report.say(f"{len(rows)} prompts for batches of {prompts}: each step goes round them more than once")
        feed = batches(rows, prompts, self.seed)
        if options.eval_every and not held_out:
            report.say("ppo.eval_every: no held-out prompts (ppo.data.eval_share=0), nothing is evaluated")
        watched = spread(held_out, options.eval_prompts) if options.eval_every else []
        if watched:
            before = evaluate(ppo, watched, self.seed)
            report.metrics(0, before)
            best.offer(before["eval/objective"], ppo)
        with report.steps(options.steps) as tell:
            for step in range(1, options.steps + 1):
                batch = next(feed)
                metrics = ppo.step(batch, further(rows, batch, prompts, self.seed, step))
                if watched and step % options.eval_every == 0:
                    metrics |= evaluate(ppo, watched, self.seed)
                    best.offer(metrics["eval/objective"], ppo)
                if options.save_every and step % options.save_every == 0:
                    save(ppo, out / "checkpoints" / f"step-{step}")
                metrics |= {"episode": step * options.batch_size}
                report.metrics(step, metrics)
                if metrics["skipped"] == 1:
                    unscored = metrics["objective/unscored"] == len(ppo.last[0])
                    report.say(
                        f"step {step}: no completion has a {'score' if unscored else 'token'}, so nothing was trained"
                    )
                tell(step, key_figures(metrics))
                if options.show_every and step % options.show_every == 0:
                    report.print(samples_table(ppo, step))
        report.write_card(best=best.facts(), kl_coef=ppo.kl_coef, last={k: v for k, v in metrics.items() if "/" in k})

    def _rows(self, rows: list[dict], tokenizer: PreTrainedTokenizerBase, report: StageReport) -> list[Row]:
        fitting, left_out = fitting_prompts(rows, tokenizer, self.options.max_prompt_tokens, "ppo")
        if left_out:
            report.say(f"{left_out} prompts left out: over ppo.max_prompt_tokens={self.options.max_prompt_tokens}")
        return [row_of(number, row, ids) for number, row, ids in fitting]


class Best:
    """Keeps the policy with the highest held-out reward − kl_coef · KL in `best/`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.value = float("-inf")
        self.step = 0

    def offer(self, value: float, ppo: PPO) -> None:
        if value > self.value:
            self.value, self.step = value, ppo.steps_done
            save(ppo, self.directory)

    def facts(self) -> dict[str, Any]:
        return {"step": self.step, "objective": self.value} if self.value > float("-inf") else {}


def evaluate(ppo: PPO, rows: list[Row], seed: int) -> dict[str, float]:
    """Reward, KL, length and endings on held-out prompts, always with the same randomness."""
    rollout = write(ppo.engine, rows, ppo.sampling, seed=seed, purpose="eval").to(ppo.roles.device)
    scores = ppo.roles.score(rollout, {"logp", "ref_logp"} | ppo.reward.wants)
    scored, _ = ppo.score_texts(rollout, scores)
    result = judge_rollout(rollout, scores, scored)
    result["objective"] = result["score"] - ppo.options.kl_coef * result["kl"]
    return {f"eval/{name}": value for name, value in result.items()}


def save(ppo: PPO, directory: Path) -> None:
    """Roles and tokenizer, in folders that transformers and PEFT load; steps done, kl_coef, which may be steered, and
    what the reward has learned."""
    ppo.roles.save(directory)
    state: dict[str, Any] = {"steps": ppo.steps_done, "kl_coef": ppo.kl_coef}
    if reward := learned(ppo.reward):
        state["reward"] = reward
    (directory / STATE_FILE).write_text(json.dumps(state) + "\n")
    for folder in (directory, directory / "critic"):
        if folder.exists():
            ppo.tokenizer.save_pretrained(folder)


def key_figures(metrics: dict[str, float]) -> str:
    words = [
        f"score {metrics['objective/scores']:+.2f}",
        f"kl {metrics['objective/kl']:.2f}",
        f"length {metrics['val/length']:.0f}",
    ]
    if "eval/score" in metrics:
        words.append(f"held-out {metrics['eval/score']:+.2f}")
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
