"""What a run tells: valid JSON lines, escaped text, a card that grows, figures of pace."""

import json

import pytest
from rich.console import Console

from align.report.report import Clock, Report, pace
from align.report.tracker import flat


@pytest.fixture
def console(tmp_path):
    with (tmp_path / "terminal.txt").open("w") as file:
        yield Console(file=file, width=100, highlight=False)


def test_metrics_are_valid_json_even_where_a_value_is_not_finite(tmp_path, console):
    with Report(console=console).stage("ppo", tmp_path) as report:
        report.metrics(1, {"loss": float("nan"), "kl": 2.5, "score": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "kl": 2.5, "score": None}


def test_brackets_in_a_line_are_printed_as_they_are(tmp_path, console):
    with Report(console=console).stage("ppo", tmp_path) as report:
        report.say("stages=[ppo] and [/bold]")
    console.file.flush()
    assert "stages=[ppo] and [/bold]" in (tmp_path / "terminal.txt").read_text()


def test_a_card_keeps_what_was_written_before(tmp_path, console):
    with Report(console=console).stage("rm", tmp_path) as report:
        report.write_card(pairs=3)
        report.write_card(score={"mean": 1.0})
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["stage"], card["pairs"], card["score"]) == ("rm", 3, {"mean": 1.0})
    assert "torch" in card["versions"]


def test_without_a_terminal_ten_lines_are_printed(tmp_path, console):
    with Report(console=console).stage("sft", tmp_path) as report, report.steps(100) as tell:
        for step in range(1, 101):
            tell(step, "loss 1.0")
    console.file.flush()
    assert len((tmp_path / "terminal.txt").read_text().splitlines()) == 10


def test_the_tracker_gets_numbers_under_the_stages_name(tmp_path, console):
    class Seen:
        def log(self, metrics, step):
            self.got = metrics, step

    tracker = Seen()
    with Report(tracker, console).stage("ppo", tmp_path) as report:
        report.metrics(7, {"loss": 1.5, "note": "text", "bad": float("nan")})
    assert tracker.got == ({"ppo/loss": 1.5}, 7)


def test_pace_is_steps_a_second_and_time_left():
    assert pace(10, 40, 20.0) == "0.5 steps/s, 1:00 left"


def test_nested_settings_become_dotted_keys():
    assert flat({"ppo": {"steps": 3, "data": {"path": None}}}) == {"ppo.steps": 3, "ppo.data.path": "None"}


def test_a_clock_adds_up_a_phase(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 4.0, 5.0, 10.0])
    monkeypatch.setattr("align.report.report.time.perf_counter", lambda: next(ticks))
    clock = Clock()
    for _ in range(2):
        with clock("generate"):
            pass
    assert clock.seconds(12) == {"seconds/generate": 3.0, "seconds/step": 10.0, "tokens_per_second": 4.0}
