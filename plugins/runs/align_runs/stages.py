"""Facts about kinds of stages for tables and searches, from the stages' specs. No torch at import."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.errors import AlignError
from align.plan.order import kind_of
from align.plan.spec import ALWAYS
from align_runs.compose import absent, specs

EVALUATIONS = 8
"""Of a trial that TRL trains, spread over its steps, for the pruner to see."""
LESS = {"loss", "kl", "seconds", "perplexity", "gap", "error"}
MORE = {"accuracy", "score", "reward", "margin", "objective", "judge", "correct"}
"""Words in a figure's name that tell whether less or more of it is better."""
METRICS = {
    "best.objective": "eval/objective", "best.judge": "eval/judge", "true_score": "eval/score",
    "eval_accuracy": "eval_rewards/accuracies", "eval_margin": "eval_rewards/margins",
}  # fmt: skip
"""Names in metrics.jsonl of figures in card.json that differ, or of the nearest there is."""


def in_order(names: Iterable[str]) -> list[str]:
    """Names of stages in the order in which they run, those of other kinds last by name."""
    return sorted(names, key=lambda name: (place(name), name))


def place(name: str) -> int:
    """The place in that order of a stage, or of a figure such as `sft.eval_loss`; one of the whole run is last."""
    owner, _, figure = name.partition(".")
    places = {"base": -1, **{stage: i for i, stage in enumerate(specs())}}
    return places.get(kind_of(owner), len(places) + (not figure))


def is_merit(figure: str) -> bool:
    """A search goes by it: the figure of a stage, or the score of a policy by a judge."""
    owner, _, name = figure.partition(".")
    spec = specs().get(kind_of(owner))
    return spec is not None and name in (spec.merit, "best.judge", "true_score")


def is_headline(figure: str) -> bool:
    """A first look wants it: a figure of a stage itself, not of a part of it, of which less or more is better."""
    owner, _, name = figure.partition(".")
    if is_merit(figure) or figure == "seconds":
        return True
    part = not name or "." in name or name == "seconds" or name.startswith("true_") or owner == "base"
    return not part and better(figure) is not None


def sections(stages: list[str], settings: dict[str, Any]) -> set[str]:
    """The sections of the configuration that the stages read, their own included, of those that some stage reads."""
    kinds = {kind_of(stage) for stage in stages} & {*specs()}
    return {
        *stages,
        *kinds,
        *(one for kind in kinds for one in specs()[kind].sections(settings.get(kind) or {}, kinds)),
    }


def owned(settings: dict[str, Any]) -> set[str]:
    """The sections that belong to stages, so that only runs of a stage that reads them have them."""
    return {*specs(), *sections(list(specs()), settings)}


def merit(cfg: DictConfig, stages: list[str]) -> str:
    """The figure that a search goes by: of the last stage that trains, on held-out rows.

    Of one that is always evaluated it is the score by the evaluation's judge where there is one.
    """
    trained = [stage for stage in stages if not specs()[kind_of(stage)].last]
    last = (trained or stages)[-1]
    spec = specs()[kind_of(last)]
    if spec.merit is None:
        raise AlignError(f"objective: {last} has no figure that a search can go by. Use objective={last}.FIGURE.")
    if spec.evaluated == ALWAYS:
        if cfg.evaluate.judge is not None:
            return f"{last}.true_score"
        if not cfg[spec.name].eval_every:
            return f"{last}.score"
        if not absent(cfg.get("watch")):
            return f"{last}.best.judge"
    return f"{last}.{spec.merit}"


def check_objective(figure: str, cfg: DictConfig, stages: list[str], searched: list[str]) -> None:
    """Raises AlignError for a figure that these runs do not have, or that is no measure of what is searched."""
    owner, _, name = figure.partition(".")
    if owner not in [*stages, *(["base"] if any(specs()[kind_of(one)].last for one in stages) else []), "seconds"]:
        raise AlignError(
            f"objective={figure}: these runs have no stage {owner}. "
            f"Use a figure of align table, such as {merit(cfg, stages)}; the stages are {', '.join(stages)}."
        )
    data = cfg[kind_of(owner)].get("data") if _by_trl(owner) else None
    if data is not None and data.get("eval_share") == 0 and data.get("eval_path") is None:
        raise AlignError(
            f"objective={figure}: {owner}.data.eval_share=0 holds out no rows. "
            f"Use {owner}.data.eval_share=0.05 or {owner}.data.eval_path=FILE."
        )
    price = f"{kind_of(owner)}.kl_coef"
    if name == "best.objective" and price in searched:
        raise AlignError(
            f"objective={figure}: it is the score less {price} · KL, and {price} is searched. "
            f"Use objective={owner}.score, or another figure."
        )


def _by_trl(stage: str) -> bool:
    """TRL trains the stage, and evaluates it on held-out rows of its data: it takes TRL's own arguments."""
    spec = specs().get(kind_of(stage))
    return spec is not None and {"data", "args"} <= {one.name for one in fields(spec.options)}


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
    owner, _, name = figure.partition(".")
    spec = specs().get(kind_of(owner))
    if spec is not None and name == spec.merit:
        return "maximize" if spec.more_is_better else "minimize"
    words = set(re.split(r"[._/]", figure))
    less, more = bool(words & LESS), bool(words & MORE)
    return None if less == more else "minimize" if less else "maximize"


def evaluations(figure: str, cfg: DictConfig, typed: list[str]) -> tuple[list[str], str]:
    """Settings that make a trial evaluate itself on the way, and why a pruner has nothing to see ('' if it has)."""
    stage, _, name = figure.partition(".")
    kind = kind_of(stage)
    if _by_trl(stage) and name == specs()[kind].merit:
        section = cfg[kind]
        if section.args.get("eval_strategy", "no") != "no":
            return [], ""
        if section.get("parallel_adapters") or OmegaConf.is_list(section.get("learning_rate")):
            return [], "adapters side by side are evaluated at their end"
        words = [f"{kind}.args.eval_strategy=steps", f"{kind}.args.eval_steps={1 / EVALUATIONS}"]
        return [word for word in words if word.partition("=")[0] not in typed], ""
    if "eval_every" in (cfg.get(kind) or {}):
        return [], "" if cfg[kind].eval_every else f"{kind}.eval_every=0"
    return [], f"{figure} is measured at the end alone"


def keep_test_rows(stages: list[str], typed: list[str]) -> list[str]:
    """Settings that keep the test rows for the settings that are chosen in the end."""
    last = [kind_of(stage) for stage in stages if specs()[kind_of(stage)].last]
    return [f"{kind}.split=eval" for kind in last if f"{kind}.split" not in typed]
