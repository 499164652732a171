"""`align search` for real: trials that end, fail and are pruned; killed in the middle and taken up again.

All tests that start processes of trials stand here: they share the server that has imported the libraries.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import made_up_runs
import pytest
from shell import RM, SFT, align

from align_runs.process import started

SHORT = f"search {SFT} sft.data.eval_share=0.3 sft.batch_size=4 name=mine sampler=random"


def saved(folder: Path) -> dict:
    return json.loads((folder / "runs" / "mine" / "search.json").read_text())


def card(folder: Path, number: int, stage: str = "sft") -> dict:
    return json.loads((folder / "runs" / "mine" / f"trial_{number}" / "latest" / stage / "card.json").read_text())


@pytest.mark.slow
def test_the_best_is_a_command_to_paste_and_a_trial_that_fails_has_its_reason(here, capsys, base):
    good = (here / "demos.jsonl").read_text()
    (here / "late.jsonl").write_text(good * 200 + "{}\n")  # beyond the first look
    words = f"{SHORT} 'sft.data.path=choice(demos.jsonl,late.jsonl)' sft.learning_rate=log(1e-4,1e-1) trials=4 "
    words = words.replace("sft.data.path=demos.jsonl ", "") + "sft.args.max_steps=3 pruner=none seed=1"
    printed = align(capsys, words.format(base=base))
    assert printed.status == 0, printed.err
    found = saved(here)
    assert [trial["state"] for trial in found["trials"]].count("failed") in (1, 2, 3)
    for trial in found["trials"]:
        if trial["settings"]["sft.data.path"] == "late.jsonl":
            assert trial["state"] == "failed" and "late.jsonl" in trial["reason"] and trial["value"] is None
        else:
            assert trial["value"] == card(here, trial["trial"])["eval_loss"]
            assert card(here, trial["trial"])["learning_rate"] == trial["settings"]["sft.learning_rate"]
    done = [trial for trial in found["trials"] if trial["state"] == "done"]
    best = min(done, key=lambda trial: trial["value"])
    assert found["best"]["trial"] == best["trial"] and found["best"]["value"] == best["value"]
    command = found["best"]["command"]
    assert command in printed.out and f"sft.learning_rate={best['settings']['sft.learning_rate']!r}" in command
    assert "eval_strategy" not in command and "name=" not in command
    again = align(capsys, shlex.join([*shlex.split(command)[1:], "name=again"]))
    assert again.status == 0, again.err
    (run,) = (path for path in (here / "runs" / "again").iterdir() if path.name != "latest")
    assert json.loads((run / "sft" / "card.json").read_text())["eval_loss"] == best["value"]

    before = (here / "runs" / "mine" / "table.md").read_text()
    more = align(capsys, words.format(base=base))
    assert more.status == 0 and "4 trials done" in more.out and "trial 4" not in more.out
    assert (here / "runs" / "mine" / "table.md").read_text() == before and before.count("\n") == 6
    changed = align(capsys, words.format(base=base).replace("1e-1", "1"))
    assert changed.status == 1
    assert "sft.learning_rate was log(1e-4,1e-1) and is log(1e-4,1). Use name=NAME." in changed.err


@pytest.mark.slow
def test_a_poor_trial_is_ended_early(here, capsys, base):
    """At the second evaluation one of 4,000 steps is still warming up, where one of 8 is done."""
    words = f"{SHORT} sft.args.eval_strategy=steps sft.args.eval_steps=4 sft.args.max_steps=choice(8,4000)"
    printed = align(capsys, f"{words} sft.learning_rate=1e-2 trials=3 seed=4".format(base=base))
    assert printed.status == 0, printed.err
    good, same, poor = saved(here)["trials"]
    assert [trial["settings"]["sft.args.max_steps"] for trial in (good, same, poor)] == [8, 8, 4000]
    assert good["state"] == "done" and good["value"] == same["value"] and poor["state"] == "pruned"
    assert list(poor["on_the_way"])[:2] == ["1", "2"]
    assert poor["on_the_way"]["2"] > good["on_the_way"]["2"]
    assert poor["reason"] == f"evaluation 2: eval_loss {poor['on_the_way']['2']:.4g}"
    table = align(capsys, "table runs/mine --format csv").out.splitlines()
    assert table[1].endswith(",done") and f"pruned in sft: {poor['reason']}" in table[3]
    steps = (here / poor["run"] / "sft" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(steps[-1])["step"] < 4000


@pytest.mark.slow
def test_a_search_that_is_killed_ends_its_trial_and_is_taken_up_again(here, capsys, base):
    words = f"{SHORT} sft.args.max_steps=40 sft.learning_rate=log(1e-4,1e-1) trials=2 pruner=none".format(base=base)
    log = here / "runs" / "mine" / "trial_0" / "log.txt"
    with subprocess.Popen([sys.executable, "-m", "align", *words.split()], stdout=subprocess.DEVNULL) as search:
        wait_for(lambda: "4/40" in (log.read_text() if log.exists() else ""))
        search.send_signal(signal.SIGKILL)
    wait_for(lambda: not writers(log))
    assert "40/40" not in log.read_text()
    printed = align(capsys, words)
    assert printed.status == 0, printed.err
    stopped, again, other = saved(here)["trials"]
    assert [trial["state"] for trial in (stopped, again, other)] == ["stopped", "done", "done"]
    assert stopped["settings"] == again["settings"] != other["settings"]
    assert not (here / stopped["run"] / "summary.json").exists() and again["value"] == card(here, 1)["eval_loss"]


def wait_for(event, seconds: float = 120) -> None:
    begun = time.monotonic()
    while not event():
        assert time.monotonic() - begun < seconds, "it does not happen"
        time.sleep(0.2)


def writers(file: Path) -> list[str]:
    """The processes that have a file open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            found += [link.parts[2]] if os.readlink(link) == str(file) else []
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.mark.slow
def test_an_objective_that_runs_do_not_have_ends_the_search_after_the_first(here, capsys, base):
    words = f"{SHORT} sft.args.max_steps=1 sft.learning_rate=log(1e-4,1e-1) objective=sft.loss trials=9"
    printed = align(capsys, words.format(base=base))
    assert (
        printed.status == 1
        and "objective=sft.loss: a run came" in printed.err
        and "Use one of sft.eval_loss" in printed.err
    )
    assert [trial["state"] for trial in saved(here)["trials"]] == ["failed"]


@pytest.mark.slow
def test_a_reward_model_is_evaluated_on_its_way(here, capsys, base):
    """TRL's accuracy at the last step is ours at the end."""
    words = (
        f"{RM} rm.batch_size=4 rm.args.max_steps=4 rm.norm_samples=2 rm.data.eval_share=0.5 rollout.max_new_tokens=4"
    )
    words = f"search {words} name=mine rm.learning_rate=choice(1e-2) trials=1".format(base=base)
    printed = align(capsys, words)
    assert printed.status == 0, printed.err
    (trial,) = saved(here)["trials"]
    assert list(trial["on_the_way"]) == ["1", "2", "3", "4"]
    assert trial["on_the_way"]["4"] == pytest.approx(card(here, 0, "rm")["eval_accuracy"]) == trial["value"]


def outcome(run, log) -> str | None:
    with started(run, ["seed=1"], log) as running:
        while not running.ended():
            pass
        return running.failure()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (made_up_runs.ends, None),
        (made_up_runs.refuses, "sft.batch_size=0: it is no size. Use 1 or more."),
        (made_up_runs.breaks, "MemoryError at made_up_runs.py"),
        (made_up_runs.is_killed, "ended by SIGKILL, as the system ends one that takes too much memory"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_that_does_not_end_well_gives_a_reason(tmp_path, run, expected):
    reason = outcome(run, tmp_path / "log.txt")
    assert reason is None if expected is None else expected in reason
    printed = {made_up_runs.ends: "run seed=1", made_up_runs.is_killed: ""}.get(run, expected)
    assert printed in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_a_run_that_goes_on_is_ended_with_the_block(tmp_path):
    with started(made_up_runs.goes_on, [], tmp_path / "log.txt") as running:
        assert not running.ended()
    assert running.process.exitcode is not None
