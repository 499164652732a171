"""The objective on the way of a trial, as its stage writes it to metrics.jsonl."""

import json
import math

from align_runs.search import evaluations


def write(file, *lines: dict, end: str = "\n") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write("\n".join(json.dumps(line) for line in lines) + end)


def values(home, figure: str) -> list[float]:
    return [value for _, value in evaluations(home, figure)]


def test_evaluations_are_read_as_they_come(tmp_path):
    assert values(tmp_path, "sft.eval_loss") == []
    file = tmp_path / "latest" / "sft" / "metrics.jsonl"
    write(file, {"step": 0, "eval_loss": 7.0}, {"step": 1, "loss": 6.0}, {"step": 2, "eval_loss": 5.0})
    assert values(tmp_path, "sft.eval_loss") == [5.0]
    write(file, {"step": 4, "eval_loss": 4.0}, {"step": 6, "eval_loss": 3.0}, end="")
    assert values(tmp_path, "sft.eval_loss") == [5.0, 4.0]  # the last line may still be written
    write(file, end="\n")
    write(file, {"step": 6, "eval_loss": 3.0}, {"step": 8, "eval_loss": None})
    *early, last = values(tmp_path, "sft.eval_loss")
    assert early == [5.0, 4.0, 3.0] and math.isnan(last)


def test_ppo_is_watched_by_its_held_out_score(tmp_path):
    line = {"step": 8, "objective/scores": 9.0, "eval/score": 0.5, "eval/kl": 2.0, "eval/objective": 0.3}
    write(tmp_path / "latest" / "ppo" / "metrics.jsonl", line)
    for figure, value in [("true_score", 0.5), ("score", 0.5), ("best.objective", 0.3), ("kl", 2.0)]:
        assert values(tmp_path, f"ppo.{figure}") == [value]
    assert evaluations(tmp_path, "ppo.kl") == [("eval/kl", 2.0)]
