"""Figures on the way, as a stage writes them to metrics.jsonl."""

import json
import math

from align.search.objective import Objective
from align.search.watch import Watch


def write(file, *lines: dict, end: str = "\n") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write("\n".join(json.dumps(line) for line in lines) + end)


def test_evaluations_are_counted_as_they_come(tmp_path):
    watch = Watch(Objective("sft.eval_loss", "minimize"), tmp_path)
    assert watch.new() == []
    file = tmp_path / "latest" / "sft" / "metrics.jsonl"
    write(file, {"step": 0, "eval_loss": 7.0}, {"step": 1, "loss": 6.0}, {"step": 2, "eval_loss": 5.0})
    assert watch.new() == [(1, 5.0)] and watch.new() == []
    write(file, {"step": 4, "eval_loss": 4.0}, {"step": 6, "eval_loss": 3.0}, end="")
    assert watch.new() == [(2, 4.0)]  # the last line may still be written
    write(file, end="\n")
    write(file, {"step": 6, "eval_loss": 3.0}, {"step": 8, "eval_loss": None})
    later = watch.new()
    assert later[0] == (3, 3.0) and later[1][0] == 4 and math.isnan(later[1][1]) and len(later) == 2


def test_ppo_is_watched_by_its_held_out_score(tmp_path):
    line = {"step": 8, "objective/scores": 9.0, "eval/score": 0.5, "eval/kl": 2.0, "eval/objective": 0.3}
    write(tmp_path / "latest" / "ppo" / "metrics.jsonl", line)
    for figure, value in [("true_score", 0.5), ("reward", 0.5), ("best.objective", 0.3), ("kl", 2.0)]:
        assert Watch(Objective(f"ppo.{figure}", "maximize"), tmp_path).new() == [(1, value)]
