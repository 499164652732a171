"""The objective on the way of a trial: evaluations that a search asks for, and reads from metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from align.search.objective import BY_TRL, Objective

ON_THE_WAY = {
    "best.objective": "eval/objective", "best.judge": "eval/judge", "true_score": "eval/score", "reward": "eval/score",
    "eval_accuracy": "eval_rewards/accuracies", "eval_margin": "eval_rewards/margins",
}  # fmt: skip
"""Other names of figures in metrics.jsonl, PPO's and TRL's DPO's, or of the nearest there is."""
EVALUATIONS = 8
"""Of a trial that TRL trains, spread over its steps, for the pruner to see."""


def on_the_way(wanted: Objective, cfg: DictConfig, typed: list[str]) -> tuple[list[str], str]:
    """Words that make a trial evaluate itself on its way, and why there is nothing to prune by ('' if there is)."""
    stage = wanted.stage
    if stage in BY_TRL and wanted.figure == f"{stage}.{BY_TRL[stage]}":
        if cfg[stage].args.get("eval_strategy", "no") != "no":
            return [], ""
        if cfg[stage].get("parallel_adapters") or OmegaConf.is_list(cfg[stage].get("learning_rate")):
            return [], "adapters side by side are evaluated at their end"
        every = [f"{stage}.args.eval_strategy=steps", f"{stage}.args.eval_steps={1 / EVALUATIONS}"]
        return [word for word in every if word.partition("=")[0] not in typed], ""
    if stage == "ppo":
        return [], "" if cfg.ppo.eval_every else "ppo.eval_every=0"
    return [], f"{wanted.figure} is measured at the end alone"


class Watch:
    """The figures on the way, in the order in which a stage writes them to metrics.jsonl.

    They are counted from 1, and those before the first step are left out: trials whose steps differ in number are
    compared after equal parts of their way.
    """

    def __init__(self, wanted: Objective, home: Path) -> None:
        last = wanted.figure.removeprefix(f"{wanted.stage}.")
        self.names = (last, ON_THE_WAY.get(last, f"eval/{last}"))
        self.file = home / "latest" / wanted.stage / "metrics.jsonl"
        self.place = self.count = self.step = 0
        self.name = ""
        """Of the figure, as the stage writes it."""

    def new(self) -> list[tuple[int, float]]:
        """(number, value) of each evaluation since the last call; nan for what was not finite."""
        if not self.file.exists():
            return []
        with self.file.open("rb") as stream:
            stream.seek(self.place)
            whole = stream.read().rpartition(b"\n")[0]
        self.place += len(whole) + 1 if whole else 0
        found = []
        for line in whole.splitlines():
            metrics = json.loads(line)
            name = next((name for name in self.names if name in metrics), None)
            if name is not None and metrics["step"] > self.step:
                self.count, self.step = self.count + 1, metrics["step"]
                self.name = name
                found.append((self.count, math.nan if metrics[name] is None else metrics[name]))
        return found
