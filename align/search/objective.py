"""What a search is after: a figure of `align table`, and whether less or more of it is wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from align.build.runtime import Build
from align.errors import AlignError
from align.plan.checks import absent, judged
from align.tables.figures import figures, nearest_figures
from align.tables.runs import stages_of

LESS = {"loss", "kl", "seconds", "perplexity", "gap", "error"}
MORE = {
    "accuracy", "score", "reward", "margin", "objective", "judge", "correct", "polite", "concise", "clean", "finished",
}  # fmt: skip
"""Words in a figure's name that tell whether less or more of it is wanted."""
BY_TRL = {"sft": "eval_loss", "best_of": "eval_loss", "rm": "eval_accuracy", "dpo": "eval_accuracy", "kto": "eval_loss"}
"""What a stage that TRL trains measures on held-out rows."""


@dataclass(frozen=True)
class Objective:
    figure: str
    direction: str

    @property
    def stage(self) -> str:
        return self.figure.partition(".")[0]

    def value(self, run: Path) -> float:
        """The figure of a run that came to its end. Raises AlignError where there is none."""
        found = figures(run, stages_of(run))
        if self.figure not in found:
            raise AlignError(
                f"search: objective={self.figure}: a run came to its end without it\n"
                f"  nearest: {', '.join(nearest_figures(self.figure, list(found)))}"
            )
        return found[self.figure]


def objective(
    figure: str | None, direction: str | None, cfg: DictConfig, stages: list[str], searched: list[str]
) -> Objective:
    """What was asked for, or the held-out score of the last stage that trains. Raises AlignError for what cannot be."""
    figure = figure or default(cfg, stages)
    owner = figure.partition(".")[0]
    owners = [*stages, *(["base"] if "evaluate" in stages else []), "seconds"]
    if owner not in owners:
        raise AlignError(
            f"search: objective={figure}: {owner} is no stage of these runs\n"
            f"  write a figure of align table, such as {default(cfg, stages)}; stages: {', '.join(stages)}"
        )
    node = cfg[owner].get("data") if owner in BY_TRL else None
    if node is not None and node.get("eval_share") == 0 and node.get("eval_path") is None:
        raise AlignError(
            f"search: objective={figure}: no rows are held out ({owner}.data.eval_share=0)\n"
            f"  write {owner}.data.eval_share=0.05, or {owner}.data.eval_path=FILE"
        )
    if figure == "ppo.best.objective" and "ppo.kl_coef" in searched:
        raise AlignError(
            f"search: objective={figure} is reward − ppo.kl_coef · KL: what is searched sets the measure\n"
            f"  write objective={_reward(cfg)}, or another figure"
        )
    return Objective(figure, direction or _direction(figure))


def default(cfg: DictConfig, stages: list[str]) -> str:
    """sft.eval_loss, dpo.eval_accuracy …; of PPO the true score if a judge knows it, else the best held-out reward."""
    trained = [stage for stage in stages if stage != "evaluate"]
    last = trained[-1] if trained else "evaluate"
    if last in ("pretrain", *BY_TRL):
        return f"{last}.{BY_TRL.get(last, 'eval_loss')}"
    if last != "ppo":
        raise AlignError(f"search: {last} has no score of its own to go by\n  write objective={last}.FIGURE")
    if judged(cfg):
        return "ppo.true_score"
    if cfg.ppo.eval_every:
        return "ppo.best.objective" if absent(cfg.watch) else "ppo.best.judge"
    return _reward(cfg)


def _reward(cfg: DictConfig) -> str:
    """What evaluation calls the reward of the last policy."""
    return "ppo.reward" if Build(cfg).sources().learned_reward else "ppo.score"


def _direction(figure: str) -> str:
    words = set(re.split(r"[._/]", figure))
    less, more = bool(words & LESS), bool(words & MORE)
    if less == more:
        raise AlignError(
            f"search: objective={figure}: its name does not tell whether less or more is wanted\n"
            "  write direction=minimize or direction=maximize"
        )
    return "minimize" if less else "maximize"
