"""Evaluation of PPO on held-out prompts: figures, the best policy, and a judge that looks on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from align import ops
from align.errors import AlignError
from align.ppo.rollouts import Row, texts_of, write
from align.ppo.step import PPO
from align.ppo.watch import Watch
from align.report.json_text import json_text
from align.report.report import StageReport
from align.rewards.parts import learned
from align.types import Rollout, Scored, Scores

STATE_FILE = "ppo_state.json"


class Best:
    """Keeps the policy with the highest value in `best/`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.value = float("-inf")
        self.step = 0

    def offer(self, value: float, ppo: PPO) -> None:
        if value > self.value:
            self.value, self.step = value, ppo.steps_done
            save(ppo, self.directory)


@dataclass
class Examiner:
    """Evaluates the policy on `rows`. The best has the highest objective; under a watch, judge's score."""

    rows: list[Row]
    seed: int
    best: Best
    watch: Watch | None = None

    def see(self, ppo: PPO, report: StageReport) -> dict[str, float]:
        """The policy as it is; figures by their names in the log."""
        figures = evaluate(ppo, self.rows, self.seed, self.watch)
        self.best.offer(figures["eval/judge" if self.watch else "eval/objective"], ppo)
        if self.watch and self.watch.fired and self.watch.fired.step == ppo.steps_done:
            report.say(self.watch.warning())
        return figures

    @property
    def stops(self) -> bool:
        return self.watch is not None and self.watch.stops

    def facts(self) -> dict[str, Any]:
        """For card.json."""
        best = self.best
        found = {"step": best.step, "judge" if self.watch else "objective": best.value}
        watched = {"watch": self.watch.facts()} if self.watch else {}
        return {"best": found if best.value > float("-inf") else {}, **watched}

    def leave(self, ppo: PPO, out: Path, report: StageReport) -> None:
        """Saves the policy in `out`; the best one instead where the watch has stopped the run, the last in `last/`."""
        save(ppo, out / "last" if self.stops else out)
        if self.best.value > float("-inf"):
            start = ", as it started: nothing later was better" if self.best.step == 0 else ""
            report.say(f"best/ is the policy of step {self.best.step} of {ppo.steps_done}{start}")
        if self.stops:
            shutil.copytree(self.best.directory, out, dirs_exist_ok=True)
            report.say(
                f"stopped; the policy of step {self.best.step} is taken, that of step {ppo.steps_done} is in last/"
            )


def evaluate(ppo: PPO, rows: list[Row], seed: int, watch: Watch | None = None) -> dict[str, float]:
    """Score, KL, length and endings on held-out prompts, always with the same randomness; what a watch sees there.

    The objective is the reward: the score less penalties and kl_coef · KL, at the coefficient that is set.
    """
    rollout = write(ppo.engine, rows, ppo.sampling, seed=seed, purpose="eval").to(ppo.roles.device)
    scores = ppo.roles.score(rollout, {"logp", "ref_logp"} | ppo.reward.wants)
    ppo.check_finite(rollout, scores)
    scored, _ = ppo.score_texts(rollout, scores)
    result = judge_rollout(rollout, scores, scored)
    reward = mean_of(ppo.penalised(scored.score_B, rollout.finished_B))
    result["objective"] = reward - ppo.options.kl_coef * result["kl"]
    if watch:
        result |= watch.see(ppo.steps_done, rollout, texts_of(rollout, ppo.tokenizer), scored.score_B)
    return {f"eval/{name}": value for name, value in result.items()}


def save(ppo: PPO, directory: Path) -> None:
    """Roles and tokenizer, in folders that transformers and PEFT load; steps done, kl_coef, which may be steered, and
    what the reward has learned."""
    if name := ops.first_not_finite(ppo.roles.actor.tensors()):
        raise AlignError(
            f"PPO step {ppo.steps_done}: the weights of the actor in {name} are not finite; nothing is saved\n"
            "  use a lower actor.learning_rate or ppo.max_grad_norm"
        )
    ppo.roles.save(directory)
    state: dict[str, Any] = {"steps": ppo.steps_done, "kl_coef": ppo.kl_coef}
    if reward := learned(ppo.reward):
        state["reward"] = reward
    (directory / STATE_FILE).write_text(json_text(state) + "\n", encoding="utf-8")
    for folder in (directory, directory / "critic"):
        if folder.exists():
            ppo.tokenizer.save_pretrained(folder)


def mean_of(score_B: Tensor) -> float:
    """The mean of the scores that are there; 0 of none."""
    known = score_B[~score_B.isnan()]
    return float(known.mean()) if len(known) else 0.0


def judge_rollout(rollout: Rollout, scores: Scores, scored: Scored) -> dict[str, float]:
    """Means over completions: score, kl (k1, nats a sequence, against the reference), tokens, share ended."""
    mask_BT = rollout.response_mask_BT
    return {
        "score": mean_of(scored.score_B),
        "kl": float((ops.kl(scores.logp_BT, scores.ref_logp_BT, "k1") * mask_BT).sum(1).mean()),
        "length": float(mask_BT.sum(1).float().mean()),
        "finished": float(rollout.finished_B.float().mean()),
    }
