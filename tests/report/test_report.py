"""What a run tells: valid JSON lines, escaped text, a card that grows, figures of pace."""

import io
import json

import pytest
from rich.console import Console
from transformers import MixtralConfig, MixtralForCausalLM

from align.errors import AlignError
from align.report.report import Clock, Report, pace
from align.report.tracker import flat
from align.stages.training import tell_size


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


def test_slow_steps_print_a_line_a_minute(tmp_path, console, monkeypatch):
    now = 0.0
    monkeypatch.setattr("align.report.report.time.perf_counter", lambda: now)
    with Report(console=console).stage("sft", tmp_path) as report, report.steps(100) as tell:
        for step in range(1, 10):  # a tenth of the way is never reached
            now += 25
            tell(step, f"loss {step}")
    console.file.flush()
    lines = (tmp_path / "terminal.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["3/100", "6/100", "9/100"]


def test_the_log_has_the_command_the_lines_and_the_error_that_ended_the_run(tmp_path):
    screen = Console(file=io.StringIO(), width=100, highlight=False, force_terminal=True)
    report = Report(console=screen, folder=tmp_path)
    report.start("align stages=[sft]", "sft; seed 0", {"sft": "from a [base]"})
    with pytest.raises(AlignError), report.stage("sft", tmp_path) as stage:
        with stage.steps(20) as tell:
            tell(1, "loss 1")
            tell(2, "loss 2")
        raise AlignError("sft: no rows\n  use others")
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert log[:3] == ["$ align stages=[sft]", "      run  sft; seed 0", "      sft  from a [base]"]
    assert log[3].startswith("      sft  2/20  loss 2  ") and log[4:] == ["sft: no rows", "  use others"]
    assert "2/20  loss" not in screen.file.getvalue(), "a terminal has the bar"
    assert stage.card["outline"] == "from a [base]"


def test_a_mixture_of_experts_tells_the_weight_of_its_routers_loss(tmp_path, console):
    config = MixtralConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    with Report(console=console).stage("sft", tmp_path) as report:
        tell_size(MixtralForCausalLM(config), report, 0.02)
        assert report.card["router_loss"] == 0.02
    console.file.flush()
    assert "the loss of the experts' router counts 0.02" in (tmp_path / "terminal.txt").read_text()


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
