"""A trial's process: what becomes of it is told, and does not reach the search."""

import made_up_runs
import pytest

from align.search.process import started


@pytest.fixture(autouse=True)
def without_libraries(monkeypatch):
    """As on a machine with a GPU, where processes import what they need; none of these runs needs anything."""
    monkeypatch.setattr("align.search.process.on_cpu", lambda: False)


def outcome(run, log) -> str | None:
    with started(run, ["seed=1"], log) as running:
        while not running.ended():
            pass
        return running.failure()


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (made_up_runs.ends, None),
        (made_up_runs.refuses, "sft.batch_size=0: write 1 or more"),
        (made_up_runs.breaks, "MemoryError at made_up_runs.py"),
        (made_up_runs.is_killed, "ended by SIGKILL, as the system ends one that takes too much memory"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_how_a_run_ended_is_told(tmp_path, run, told):
    reason = outcome(run, tmp_path / "log.txt")
    assert reason is None if told is None else told in reason
    printed = {made_up_runs.ends: "run seed=1", made_up_runs.is_killed: ""}.get(run, told)
    assert printed in (tmp_path / "log.txt").read_text()


def test_a_run_that_goes_on_is_ended_with_the_block(tmp_path):
    with started(made_up_runs.goes_on, [], tmp_path / "log.txt") as running:
        assert not running.ended()
    assert running.process.exitcode is not None
