"""What tables and searches know about kinds of stages. No torch at import.

`STAGES` is the one table that names them; the functions below it answer every question that depends on a stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from align.errors import AlignError
from align_runs.compose import absent, has_learned_reward

EVALUATIONS = 8
"""Of a trial that TRL trains, spread over its steps, for the pruner to see."""
LESS = {"loss", "kl", "seconds", "perplexity", "gap", "error"}
MORE = {"accuracy", "score", "reward", "margin", "objective", "judge", "correct"}
"""Words in a figure's name that tell whether less or more of it is better."""
METRICS = {
    "best.objective": "eval/objective", "best.judge": "eval/judge", "true_score": "eval/score", "reward": "eval/score",
    "eval_accuracy": "eval_rewards/accuracies", "eval_margin": "eval_rewards/margins",
}  # fmt: skip
"""Names in metrics.jsonl of figures in card.json that differ, or of the nearest there is."""
ROLES = ("actor", "critic", "reference", "reward", "advantage", "policy_loss", "rollout", "watch")
DIRECT = ("actor.path", "actor.peft", "actor.adapter", "actor.loraplus_lr_ratio", "reference.path")


@dataclass(frozen=True)
class Stage:
    merit: str | None = None
    """The figure of its card that a search goes by."""
    reads: tuple[str, ...] = ()
    """Sections and keys of the configuration that it reads beside its own section."""
    by_trl: bool = False
    """Trained by TRL, which evaluates it on held-out rows of its data, also on the way."""


STAGES = {
    "pretrain": Stage("eval_loss"),
    "sft": Stage("eval_loss", by_trl=True),
    "rm": Stage("eval_accuracy", ("rollout.max_new_tokens",), by_trl=True),
    "preferences": Stage(reads=("actor.path", "rollout")),
    "best_of": Stage("eval_loss", by_trl=True),
    "dpo": Stage("eval_accuracy", DIRECT, by_trl=True),
    "kto": Stage("eval_loss", DIRECT, by_trl=True),
    "ppo": Stage("best.objective", ROLES),
    "evaluate": Stage(reads=("ppo.data", "ppo.max_prompt_tokens", "actor.path", "reference.path", "reward", "rollout")),
}
"""Kinds of stages in the order in which they run. The stage `evaluate` puts its figures under the policies' names."""
OTHER = Stage()
MODULES = (
    "align.stages.evaluate.stage", "align.stages.ppo", "align.stages.pretrain", "align.stages.rm.stage",
    "align.stages.sft.stage",
)  # fmt: skip
"""What stages import when they run: imported once for all trials of a search."""


def in_order(names: Iterable[str]) -> list[str]:
    """Names of stages in the order in which they run, those of other kinds last by name."""
    return sorted(names, key=lambda name: (place(name), name))


def place(name: str) -> int:
    """The place in that order of a stage, or of a figure such as `sft.eval_loss`; one of the whole run is last."""
    owner, _, figure = name.partition(".")
    places = {"base": -1, **{stage: i for i, stage in enumerate(STAGES)}}
    return places.get(owner, len(places) + (not figure))


def is_merit(figure: str) -> bool:
    """A search goes by it: the figure of a stage, or the score of a policy by a judge."""
    owner, _, name = figure.partition(".")
    return owner in STAGES and name in (STAGES[owner].merit, "best.judge", "true_score")


def is_headline(figure: str) -> bool:
    """A first look wants it: a figure of a stage itself, not of a part of it, of which less or more is better."""
    owner, _, name = figure.partition(".")
    if is_merit(figure) or figure == "seconds":
        return True
    part = not name or "." in name or name == "seconds" or name.startswith("true_") or owner == "base"
    return not part and better(figure) is not None


def sections(stages: list[str]) -> list[str]:
    """Sections and keys of the configuration that the stages read, of those that belong to stages and roles."""
    return [*stages, *(key for stage in stages for key in STAGES.get(stage, OTHER).reads)]


def is_owned(section: str) -> bool:
    """The section belongs to a stage or a role, so that only runs of a stage that reads it have it."""
    return section in STAGES or section in ROLES


def merit(cfg: DictConfig, stages: list[str]) -> str:
    """The figure that a search goes by: of the last stage that trains, on held-out rows.

    Of `ppo` it is the score by the evaluation's judge where there is one, else the best held-out objective.
    """
    trained = [stage for stage in stages if stage != "evaluate"]
    last = trained[-1] if trained else "evaluate"
    figure = STAGES.get(last, OTHER).merit
    if figure is None:
        raise AlignError(f"objective: {last} has no figure that a search can go by. Use objective={last}.FIGURE.")
    if last == "ppo":
        if cfg.evaluate.judge is not None:
            return "ppo.true_score"
        if not cfg.ppo.eval_every:
            return _reward(cfg)
        return f"ppo.{figure}" if absent(cfg.watch) else "ppo.best.judge"
    return f"{last}.{figure}"


def _reward(cfg: DictConfig) -> str:
    """The reward of the last policy, by the name that the evaluation gives it."""
    return "ppo.reward" if has_learned_reward(cfg) else "ppo.score"


def check_objective(figure: str, cfg: DictConfig, stages: list[str], searched: list[str]) -> None:
    """Raises AlignError for a figure that these runs do not have, or that is no measure of what is searched."""
    owner = figure.partition(".")[0]
    if owner not in [*stages, *(["base"] if "evaluate" in stages else []), "seconds"]:
        raise AlignError(
            f"objective={figure}: these runs have no stage {owner}. "
            f"Use a figure of align table, such as {merit(cfg, stages)}; the stages are {', '.join(stages)}."
        )
    data = cfg[owner].get("data") if STAGES.get(owner, OTHER).by_trl else None
    if data is not None and data.get("eval_share") == 0 and data.get("eval_path") is None:
        raise AlignError(
            f"objective={figure}: {owner}.data.eval_share=0 holds out no rows. "
            f"Use {owner}.data.eval_share=0.05 or {owner}.data.eval_path=FILE."
        )
    if figure == "ppo.best.objective" and "ppo.kl_coef" in searched:
        raise AlignError(
            f"objective={figure}: it is reward − ppo.kl_coef · KL, and ppo.kl_coef is searched. "
            f"Use objective={_reward(cfg)}, or another figure."
        )


def direction(figure: str) -> str:
    """`minimize` or `maximize`. Raises AlignError where the figure's name does not say which is better."""
    found = better(figure)
    if found is None:
        raise AlignError(f"objective={figure}: is less or more better? Use direction=minimize or direction=maximize.")
    return found


def better(figure: str) -> str | None:
    """`minimize` or `maximize` by the words in a figure's name; None where they say neither.

    >>> better("sft.eval_loss"), better("ppo.true_score"), better("ppo.length")
    ('minimize', 'maximize', None)
    """
    words = set(re.split(r"[._/]", figure))
    less, more = bool(words & LESS), bool(words & MORE)
    return None if less == more else "minimize" if less else "maximize"


def evaluations(figure: str, cfg: DictConfig, typed: list[str]) -> tuple[list[str], str]:
    """Settings that make a trial evaluate itself on the way, and why a pruner has nothing to see ('' if it has)."""
    name = figure.partition(".")[0]
    stage = STAGES.get(name, OTHER)
    if stage.by_trl and figure == f"{name}.{stage.merit}":
        section = cfg[name]
        if section.args.get("eval_strategy", "no") != "no":
            return [], ""
        if section.get("parallel_adapters") or OmegaConf.is_list(section.get("learning_rate")):
            return [], "adapters side by side are evaluated at their end"
        words = [f"{name}.args.eval_strategy=steps", f"{name}.args.eval_steps={1 / EVALUATIONS}"]
        return [word for word in words if word.partition("=")[0] not in typed], ""
    if name == "ppo":
        return [], "" if cfg.ppo.eval_every else "ppo.eval_every=0"
    return [], f"{figure} is measured at the end alone"


def keep_test_rows(stages: list[str], typed: list[str]) -> list[str]:
    """Settings that keep the test rows for the settings that are chosen in the end."""
    return ["evaluate.split=eval"] if "evaluate" in stages and "evaluate.split" not in typed else []
