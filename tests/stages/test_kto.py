"""kto: the order of rows, batches that can be compared, weights for labels that are unequally many."""

import json

import pytest
from command_line import stand_in, write_rows
from rich.console import Console
from trl import KTOConfig

import align
from align.errors import AlignError
from align.report.report import Report
from align.stages.direct.stage import check_compared, in_order, unbalanced, without_one

KTO = "stages=[kto] data@kto.data=unpaired kto.data.path=marked.jsonl kto.data.eval_share=0 kto.batch_size=4"


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from stand_in(tmp_path, monkeypatch)


def marked(good: int, bad: int) -> list[dict]:
    """Sorted by label."""
    labels = [True] * good + [False] * bad
    return [{"prompt": f"say {n}", "completion": f" {n}", "label": label} for n, label in enumerate(labels)]


def steps(folder) -> list[dict]:
    lines = (folder / "runs" / "run" / "latest" / "kto" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def test_a_row_alone_in_the_last_batch_is_left_out_and_said(here, base, capsys):
    write_rows(here / "marked.jsonl", marked(5, 4))
    align.run([*KTO.split(), f"actor.path={base}"])
    out = capsys.readouterr().out
    assert "1 of 9 rows left out: alone" in out and "8 rows, 0 held out" in out
    assert len(steps(here)) == 2


def test_a_loss_that_compares_nothing_keeps_all_rows(here, base, capsys):
    write_rows(here / "marked.jsonl", marked(5, 4))
    align.run([*KTO.split(), f"actor.path={base}", "kto.loss=apo_zero_unpaired"])
    assert "left out" not in capsys.readouterr().out and len(steps(here)) == 3


def test_rows_sorted_by_label_are_mixed_by_seed(here, base):
    """Of eight good and eight bad rows each batch of four has both: figures of both sides stand in each step."""
    rows = marked(8, 8)
    assert in_order(rows, 0) == in_order(rows, 0) != in_order(rows, 1)
    assert sorted(in_order(rows, 0), key=rows.index) == rows
    write_rows(here / "marked.jsonl", rows)
    align.run([*KTO.split(), f"actor.path={base}"])
    assert sum("rewards/chosen" in row and "rewards/rejected" in row for row in steps(here)) >= 3


def test_the_row_that_is_left_out_has_the_label_of_most():
    assert sorted(row["label"] for row in without_one(in_order(marked(4, 1), 0))) == [False, True, True, True]


@pytest.mark.parametrize(
    ("good", "bad", "weights", "said"),
    [
        (40, 4, {}, "kto.args.undesirable_weight=10"),
        (4, 40, {}, "kto.args.desirable_weight=10"),
        (40, 4, {"undesirable_weight": 9.0}, ""),
        (40, 4, {"desirable_weight": 2.0}, "kto.args.undesirable_weight=20"),
        (11, 10, {}, ""),
    ],
)
def test_the_weight_that_makes_up_for_unequal_numbers_is_named(tmp_path, good, bad, weights, said):
    found = unbalanced(marked(good, bad), KTOConfig(str(tmp_path), use_cpu=True, **weights))
    assert said in found and bool(found) == bool(said)


def test_micro_batches_of_one_row_are_refused_and_of_more_are_told(tmp_path, capsys):
    with Report(console=Console(soft_wrap=True)).stage("kto", tmp_path) as report:
        with pytest.raises(AlignError, match=r"gradient_accumulation_steps=4(.|\n)*use kto.batch_size=8"):
            check_compared(1, 4, report)
        check_compared(4, 1, report)
        assert not capsys.readouterr().out
        check_compared(2, 4, report)
    assert "compares the 2 rows of a micro-batch, not all 8" in capsys.readouterr().out
