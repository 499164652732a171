"""`align table RUNS`: real runs side by side, averaged, written to files; what failed or goes on is there, too."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from shell import PPO, SFT, align, refused, stand_in, write_data

from align.cli.main import main

SHORT = f"{SFT} sft.batch_size=4 sft.args.max_steps=3 sft.data.eval_share=0.5"


@pytest.fixture(scope="module")
def swept(tmp_path_factory, base):
    """A folder with runs of every kind: a sweep, other methods, one that failed, one that was killed."""
    folder = tmp_path_factory.mktemp("swept")
    write_data(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for here in stand_in(folder, monkeypatch):
            short = SHORT.format(base=base)
            main(f"-m {short} name=sweep seed=0,1 sft.learning_rate=1e-3,1e-2".split())
            main(f"-m {short} name=methods peft@sft.peft=lora,dora,houlsby".split())
            with pytest.raises(SystemExit):
                main(
                    f"{PPO} name=fails reward.fn=my_rewards.raises ppo.steps=1 ppo.batch_size=4".format(
                        base=base
                    ).split()
                )
            killed = here / "runs" / "killed" / "2026-01-01_00-00-00"
            shutil.copytree(runs(here, "sweep")[0], killed)
            (killed / "summary.json").unlink()
            (killed / "sft" / "card.json").unlink()
            early = here / "runs" / "early" / "2026-01-01_00-00-00"  # as one that ended in a stage before ppo
            shutil.copytree(runs(here, "fails")[0] / "ppo", early / "sft")
    return folder


@pytest.fixture
def many(swept, monkeypatch):
    yield from stand_in(swept, monkeypatch)


def runs(folder: Path, name: str) -> list[Path]:
    return sorted(path for path in (folder / "runs" / name).iterdir() if path.name != "latest")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def card(run: Path) -> dict:
    return json.loads((run / "sft" / "card.json").read_text())


@pytest.mark.slow
def test_a_sweep_has_a_row_a_run_with_what_differs_and_what_came_out(many, capsys):
    found = rows(align(capsys, "table runs/sweep --format csv").out)
    assert [row["run"] for row in found] == [run.name for run in runs(many, "sweep")]
    assert list(found[0]) == ["run", "sft.learning_rate", "seed", "sft.eval_loss", "seconds", "state"]
    pairs = [(row["sft.learning_rate"], row["seed"]) for row in found]
    assert pairs == [("0.001", "0"), ("0.01", "0"), ("0.001", "1"), ("0.01", "1")]
    assert [float(row["sft.eval_loss"]) for row in found] == [card(run)["eval_loss"] for run in runs(many, "sweep")]


@pytest.mark.slow
def test_a_terminal_shows_the_columns_that_fit_and_says_how_many_do_not(many, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = align(capsys, "table runs/sweep").out.splitlines()
    assert lines[1].split() == ["run", "learning_rate", "seed", "eval_loss", "seconds"]
    first = runs(many, "sweep")[0]
    assert lines[3].split()[:4] == [first.name, "0.001", "0", f"{card(first)['eval_loss']:.4g}"]
    monkeypatch.setenv("COLUMNS", "45")
    *table, note = align(capsys, "table runs/sweep").out.splitlines()
    shown = table[1].split()
    assert "eval_loss" in shown and len(shown) in (3, 4)  # by the letters of a run's name
    figures = align(capsys, "table runs/sweep --columns all --format csv").out.partition("\n")[0].split(",")
    assert note == f"{len(figures) - len(shown) - 1} more columns: --columns all"  # state is no column
    assert max(map(len, table)) <= 45 and "…" not in "".join(table)


@pytest.mark.slow
def test_without_a_terminal_a_table_fits_120_letters_and_named_columns_stay_in_a_line(many, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    first = runs(many, "sweep")[0]
    printed = align(capsys, "table runs").out
    assert max(map(len, printed.splitlines())) <= 120 and "more columns: --columns all" in printed
    printed = align(capsys, "table runs --columns all").out
    assert max(map(len, printed.splitlines())) > 120 and printed.count(first.name) == 1


@pytest.mark.slow
def test_named_columns_are_folded_on_a_terminal(many, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "45")
    folded = align(capsys, "table runs/sweep --columns eval_loss,seconds").out
    first = runs(many, "sweep")[0]
    assert folded.count(first.name) == 2 and "…" not in folded and max(map(len, folded.splitlines())) <= 45


@pytest.mark.slow
def test_methods_are_shown_by_name_and_their_own_settings_are_not_compared(many, capsys):
    found = rows(align(capsys, "table runs/methods --format csv").out)
    assert [row["sft.peft"] for row in found] == ["lora", "dora", "houlsby"]
    assert not [name for name in found[0] if name.startswith("sft.peft.")]


@pytest.mark.slow
def test_what_failed_or_has_no_end_is_there_and_says_so(many, capsys):
    found = rows(align(capsys, "table runs/fails runs/killed runs/sweep --columns sft.eval_loss --format csv").out)
    failed, killed, *others = found
    assert failed["state"].startswith("failed in ppo: ") and "colour" in failed["state"]
    assert killed["state"] == "unfinished in sft, step 3" and killed["sft.eval_loss"] == ""
    assert [row["state"] for row in others] == ["done"] * 4
    assert "failed in ppo" in align(capsys, "table runs/fails").out


@pytest.mark.slow
def test_a_run_has_its_settings_of_stages_that_it_did_not_reach(many, capsys):
    (row,) = rows(align(capsys, "table runs/early --columns ppo.batch_size --format csv").out)
    assert row["ppo.batch_size"] == "4" and row["state"].startswith("unfinished in sft")


@pytest.mark.slow
def test_runs_that_differ_in_the_seed_are_averaged(many, capsys):
    found = rows(align(capsys, "table runs/sweep runs/killed --over seed --format csv").out)
    assert [row["sft.learning_rate"] for row in found] == ["0.001", "0.01"]
    assert [row["runs"] for row in found] == ["2 of 3", "2"]
    losses = {}
    for run in runs(many, "sweep"):
        losses.setdefault(card(run)["learning_rate"], []).append(card(run)["eval_loss"])
    for row in found:
        expected = losses[float(row["sft.learning_rate"])]
        assert float(row["sft.eval_loss.mean"]) == pytest.approx(np.mean(expected), rel=1e-12)
        assert float(row["sft.eval_loss.deviation"]) == pytest.approx(np.std(expected, ddof=1), rel=1e-9)
        assert row["sft.eval_loss.count"] == "2"
    assert "±" in align(capsys, "table runs/sweep --over seed").out


@pytest.mark.slow
def test_a_group_that_mixes_other_settings_says_so(many, capsys):
    printed = align(capsys, "table runs/sweep runs/methods --group sft.peft --columns eval_loss").out
    assert "the runs of a row differ in sft.learning_rate, seed" in printed
    assert [line.split()[:2] for line in printed.splitlines()[3:6]] == [["5", "lora"], ["1", "dora"], ["1", "houlsby"]]
    assert "differ in" not in align(capsys, "table runs/sweep --group learning_rate --over seed").out


@pytest.mark.slow
def test_rows_are_sorted_by_a_figure_and_those_without_it_come_last(many, capsys):
    words = "table runs/killed runs/sweep --format csv --sort eval_loss"
    losses = [float(row["sft.eval_loss"]) for row in rows(align(capsys, words).out)[:4]]
    assert losses == sorted(losses) and len(set(losses)) == 4
    down = rows(align(capsys, f"{words} --descending").out)
    assert [float(row["sft.eval_loss"]) for row in down[:4]] == losses[::-1] and down[4]["sft.eval_loss"] == ""


@pytest.mark.slow
def test_one_run_goes_by_many_names_and_is_one_row(many, capsys):
    newest = runs(many, "sweep")[-1]
    words = f"table runs/sweep/latest runs/sweep/latest/sft 'runs/sweep/*' {newest} --format csv"
    assert {row["run"] for row in rows(align(capsys, words).out)} == {run.name for run in runs(many, "sweep")}
    only = rows(align(capsys, "table runs/sweep/latest/sft runs/killed --format csv").out)
    assert [row["run"] for row in only] == ["sweep", "killed"] and only[0]["state"] == "done"


@pytest.mark.slow
def test_columns_are_chosen_by_name_ending_or_pattern(many, capsys):
    found = rows(align(capsys, "table runs/sweep --columns stage@sft.batch_size,eval_loss,*.seconds --format csv").out)
    names = ["sft.learning_rate", "seed", "sft.batch_size", "sft.eval_loss", "sft.seconds"]
    assert list(found[0]) == ["run", *names, "state"] and {row["sft.batch_size"] for row in found} == {"4"}
    assert rows(align(capsys, "table runs/sweep --columns all --format csv").out)[0]["sft.rows"] == "7"


@pytest.mark.slow
def test_files_are_written_by_their_suffix(many, capsys, tmp_path):
    from matplotlib.image import imread

    for name in ("t.md", "t.csv", "t.png"):
        assert align(capsys, f"table runs/sweep --to {tmp_path / name}").status == 0
    head, rule, *lines = (tmp_path / "t.md").read_text().splitlines()
    assert (
        head == "| run | learning_rate | seed | eval_loss | seconds |" and set(rule) == set("|:- ") and len(lines) == 4
    )
    assert len(rows((tmp_path / "t.csv").read_text())) == 4
    assert imread(tmp_path / "t.png").std() > 0.05  # something is drawn
    assert align(capsys, f"table runs/fails --to {tmp_path / 'none.png'}").status == 1
    assert not (tmp_path / "none.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("runs/sweeep", ["runs/sweeep: there is no such folder", "Use runs/sweep."]),
        ("runs/none*", ["runs/none*: there is no such folder"]),
        ("demos.jsonl", ["demos.jsonl: it holds no run", "runs/NAME"]),
        ("", ["required: RUNS", "Use align table RUNS"]),
        (
            "runs/sweep --columns sft.evalloss",
            ["sft.evalloss: these runs have no such column", "Use sft.eval_loss"],
        ),
        ("runs/sweep --columns ppo.*", ["--columns ppo.*: these runs have no such column"]),
        ("runs/sweep --sort learning_rat", ["--sort learning_rat", "Use sft.learning_rate"]),
        ("runs/early --over sed", ["--over sed", "Use seed."]),
        ("runs/early --over seed", ["--over seed", "do not differ", "Leave it out."]),
        ("runs/sweep --over seeds", ["--over seeds", "Use seed."]),
        ("runs/sweep --group epochs", ["--group epochs", "Use sft.learning_rate or seed."]),
        ("runs/sweep --columns path", ["several columns", "sft.path, sft.data.path or data.path"]),
        ("runs/sweep --format html", ["invalid choice: 'html'"]),
        ("runs/sweep --to t.pdf", ["--to t.pdf", ".png"]),
        ("runs/sweep --format csv --to t.md", ["--format csv --to t.md"]),
        ("runs/sweep --to nowhere/t.md", ["nowhere/t.md: its folder is not there"]),
    ],
)
def test_bad_words_are_refused(many, capsys, words, expected):
    refused(capsys, f"table {words}", expected)


@pytest.mark.slow
def test_a_picture_without_matplotlib_is_refused_with_what_to_install(many, capsys, monkeypatch):
    monkeypatch.setattr("align.installed.installed", lambda package: package != "matplotlib")
    refused(capsys, "table runs/sweep --to t.png", ["matplotlib is not installed", "align-rlhf[bench]", "--to t.md"])


def test_help_is_its_own(capsys):
    printed = align(capsys, "table --help")
    assert printed.status == 0 and printed.out.startswith("usage: align table RUNS") and "--over" in printed.out
