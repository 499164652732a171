"""The command line: commands, flags, sweeps, users' own yaml and functions, and no torch before it is needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import PPO, SFT, TINY, answer, refused, stand_in, write_data

import align
from align.cli.main import flags_first
from align.errors import AlignError

TASKS = Path(__file__).resolve().parents[2] / "examples" / "rewards" / "tasks.jsonl"
"""Prompts without answers."""
ONE_STEP = f"{SFT} sft.batch_size=4 sft.args.max_steps=1"


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_data(tmp_path)
    yield from stand_in(tmp_path, monkeypatch)


def runs(folder: Path, name: str = "run") -> list[Path]:
    return sorted(path for path in (folder / "runs" / name).iterdir() if path.name != "latest")


def test_the_configuration_is_shown_and_nothing_is_run(here, capsys):
    before = sorted(here.iterdir())
    said = answer(capsys, f"{TINY} --cfg job --resolve")
    assert said.status == 0 and said.out.startswith("pretrain:") and "${" not in said.out and "hydra" not in said.out
    said = answer(capsys, f"run {TINY} actor.learning_rate=0.5 --cfg job -p actor")
    assert "learning_rate: 0.5" in said.out and "pretrain:" not in said.out
    assert sorted(here.iterdir()) == before


def test_help_fits_a_screen_and_lists_commands_choices_and_examples(here, capsys):
    said = answer(capsys, "--help")
    assert said.status == 0 and len(said.out.splitlines()) <= 40
    for word in (
        "align plugins",
        "align experiment=tiny",
        "peft@{sft,rm,best_of,actor,critic}.peft=",
        "kind_words",
        "--cfg job",
    ):
        assert word in said.out
    assert "schema" not in said.out and "hydra/" not in said.out and "Powered by" not in said.out
    assert answer(capsys, "run -h").out == answer(capsys, "help").out == said.out
    assert answer(capsys, "--version").out == f"align {align.__version__}\n"


def test_info_and_completion_are_hydras(here, capsys, monkeypatch):
    said = answer(capsys, "--info searchpath")
    assert "pkg://align.conf" in said.out and "pkg://kind_words.conf" in said.out
    monkeypatch.setenv("COMP_LINE", "align reward=k")
    monkeypatch.setenv("COMP_POINT", "14")
    assert answer(capsys, "-sc query=bash").out.split()[-1] == "reward=kind_words"


def test_plugins_are_listed_with_origin_and_help(here, capsys):
    (here / "conf" / "reward").mkdir(parents=True)
    (here / "conf" / "reward" / "mine.yaml").write_text("# Reward: my own: align reward=mine\n_target_: my.Reward\n")
    lines = answer(capsys, "plugins").out.splitlines()
    assert any(line.startswith("experiment=tiny") for line in lines)
    one_group = answer(capsys, "plugins reward").out.splitlines()
    names = "by_column ensemble fn format gate http json kind_words llm_judge mine model overlong repetition sum"
    assert [line.split()[0] for line in one_group] == [f"reward={name}" for name in names.split()]
    mine = next(line for line in one_group if line.startswith("reward=mine"))
    assert "./conf" in mine and "my own: align reward=mine" in mine
    assert "kind_words 0.1.0" in next(line for line in one_group if "=kind_words " in line)


def test_flags_may_stand_anywhere():
    assert flags_first("a=1 -m b=2".split()) == ["-m", "a=1", "b=2"]
    assert flags_first("a=1 --cfg job b=2 -p actor".split()) == ["--cfg", "job", "-p", "actor", "a=1", "b=2"]
    assert flags_first("--info a=1".split()) == ["--info", "a=1"]
    assert flags_first("--info searchpath a=1".split()) == ["--info", "searchpath", "a=1"]


def test_python_raises_what_the_command_line_prints(here):
    """Hydra's own errors, too."""
    for words, said in (("stages=[]", "stages"), ("expermient=tiny", "nearest: experiment"), ("reward=fm", "nearest")):
        with pytest.raises(AlignError, match=said):
            align.run([words])


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_several_processes_of_a_launcher_are_refused(here, capsys, monkeypatch, variable):
    """Each of them would do the whole run."""
    monkeypatch.setenv(variable, "2")
    refused(capsys, TINY, [f"{variable}=2", "2 processes", "without torchrun"])
    assert not (here / "runs").exists()


def test_a_judge_of_other_prompts_is_refused_at_the_start(here, capsys, base):
    words = "evaluate.judge=help_desk.rule.true_score sft.data.path=demos.jsonl ppo.data.path=prompts.jsonl"
    refused(
        capsys, f"stages=sft model={base} {words} data@ppo.data=prompts",
        ["evaluate.judge=help_desk.rule.true_score fails on the prompt", "evaluate.judge=null"],
    )  # fmt: skip
    assert not (here / "runs").exists()


def test_an_evaluation_names_the_key_of_its_prompts_at_once(here, capsys, base):
    words = f"stages=[sft,evaluate] {SFT.partition(' ')[2]} evaluate.judge=help_desk.rule.true_score".format(base=base)
    refused(capsys, words, ["ppo.data.path", "evaluate takes its prompts from there"])


def test_a_run_leaves_its_folder_and_nothing_else(here, capsys, base):
    before = {path.name for path in here.iterdir()}
    said = answer(capsys, ONE_STEP.format(base=base))
    assert said.status == 0, said.err
    assert {path.name for path in here.iterdir()} - before - {"__pycache__"} == {"runs"}
    (run,) = runs(here)
    assert (here / "runs" / "run" / "latest").resolve() == run
    assert (run / "sft" / "adapter_config.json").exists() and (run / "summary.json").exists()


def test_stages_that_run_in_another_order_than_typed_say_so(here, capsys):
    words = "stages=[rm,sft] model=x sft.data.path=nowhere.jsonl rm.data.path=pairs.jsonl"
    assert answer(capsys, words).out.startswith(
        "stages run as sft → rm: a stage runs after those whose result it takes"
    )
    assert answer(capsys, words.replace("[rm,sft]", "[sft,rm]")).out == ""


def test_a_sweep_goes_on_after_a_run_that_failed(here, capsys, base):
    before = {path.name for path in here.iterdir()}
    said = answer(capsys, f"{ONE_STEP} -m seed=range(0,2) sft.batch_size=0,4".format(base=base))
    assert said.status == 1
    assert said.err.count("sft.batch_size=0: use a whole number from 1") == 2
    assert "2 of the 4 runs of this sweep failed" in said.err and "Traceback" not in said.err
    assert len(runs(here)) == 2 and all((run / "summary.json").exists() for run in runs(here))
    table = said.out.rpartition("summary.json")[2]
    assert "eval_loss" in table and all(run.name in table for run in runs(here)), "the sweep ends with its table"
    assert {path.name for path in here.iterdir()} - before - {"__pycache__"} == {"runs"}


def test_a_sweep_goes_over_experiments_of_ones_own(here, capsys, base):
    (here / "conf" / "experiment").mkdir(parents=True)
    for number in (1, 2):
        text = f"# @package _global_\nname: mine{number}\nsft:\n  epochs: {number}\n"
        (here / "conf" / "experiment" / f"mine{number}.yaml").write_text(text)
    said = answer(capsys, f"-m experiment=glob(mine*) {ONE_STEP}".format(base=base))
    assert said.status == 0, said.err
    assert "run 1 of the sweep: align experiment=mine1" in said.out
    assert len(runs(here, "mine1")) == len(runs(here, "mine2")) == 1
    assert "epochs: 2" in (runs(here, "mine2")[0] / "sft" / "config.yaml").read_text()


def test_a_sweep_with_a_run_that_cannot_be_composed_starts_none(here, capsys, base):
    said = answer(capsys, f"-m {ONE_STEP} reward=fn,fnn".format(base=base))
    assert said.status == 1 and "reward=fnn" in said.err and not (here / "runs").exists()


@pytest.mark.parametrize("place", [".", "plugins/mine"])
def test_a_function_of_the_folder_one_stands_in_is_found(here, capsys, base, place):
    folder = here / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own_rewards.py").write_text("def fixed(completions, **kw): return [1.0] * len(completions)\n")
    said = answer(capsys, f"{PPO} reward.fn=own_rewards.fixed ppo.data.path=nowhere.jsonl".format(base=base))
    assert "nowhere.jsonl" in said.err
    said = answer(capsys, f"{PPO} reward.fn=own_rewards.fixd".format(base=base))
    assert "own_rewards.fixed" in said.err


@pytest.mark.parametrize(("folder", "flag"), [("conf", ""), ("elsewhere", "--config-dir elsewhere")])
def test_yaml_of_ones_own_is_found(here, capsys, folder, flag):
    (here / folder / "reward").mkdir(parents=True)
    text = (
        "# Reward: mine: align reward=mine\n_target_: align.rewards.function.FunctionReward\nfn: my_rewards.brevity\n"
    )
    (here / folder / "reward" / "mine.yaml").write_text(text)
    said = answer(capsys, f"{flag} {TINY} reward=mine --cfg job -p reward")
    assert said.status == 0 and "fn: my_rewards.brevity" in said.out


@pytest.mark.parametrize(
    "arguments",
    [
        [*TINY.split(), "--cfg", "job", "--resolve"],
        ["--help"],
        ["plugins"],
        ["table", "nowhere"],
        ["sede=1"],
        ["search", *TINY.split(), "seed=range(1,3)", "objective=sft.nothing"],
        ["stages=sft", "model=x", "sft.data.path=nowhere.jsonl"],
        ["stages=rm", "model=x", f"rm.data.path={TASKS}"],
        [*TINY.split(), "rm.data.noise=2"],
        [*TINY.split(), "reward=fn", "reward.fn=nowhere.score"],
        [*TINY.split(), "watch=judge", "watch.judge.fn=json.lods"],
    ],
)
def test_answers_that_need_no_torch_import_none(arguments, tmp_path):
    code = (
        "import sys\nfrom align.cli.main import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    heavy = {'torch', 'transformers', 'peft', 'trl', 'datasets', 'vllm'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert "heavy: []" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_a_locale_that_is_not_utf8_changes_nothing(tmp_path):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "align", "experiment=tiny", "name='é'", "--cfg", "job", "-p", "name"]
    done = subprocess.run(command, env={**os.environ, **plain}, cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout.strip().decode()) == (0, "é"), done.stderr


def test_the_module_is_the_command(tmp_path):
    command = [sys.executable, "-m", "align", "experiment=tiny", "--cfg", "job", "-p", "name"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-m", "align", "sede=1"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "nearest: seed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("ppo.kl_coef", ["ppo.kl_coef", "default 0.05", "a number from 0 to 100", "away from the reference"]),
        ("rollout.max_new_tokens", ["default 64", "a whole number from 1", "tokens"]),
        ("critic.learning_rate", ["default that of actor.learning_rate", "lora:NUMBER"]),
        ("sft.peft.r", ["align … --cfg job -p sft.peft"]),
        ("sft.args", ["default none"]),
        ("reward.url", ["default required"]),
    ],
)
def test_the_help_of_a_setting_tells_its_default_range_and_meaning(capsys, key, words):
    said = answer(capsys, f"--help {key}")
    assert said.status == 0 and all(word in said.out for word in words), said


@pytest.mark.parametrize(
    ("command", "words"),
    [("plugins", "--explain METHOD"), ("export", "--to DIR"), ("table", "--columns"), ("search", "objective=")],
)
def test_a_commands_help_is_its_own(capsys, command, words):
    said = answer(capsys, f"{command} --help")
    assert said.status == 0 and said.out.startswith(f"usage: align {command} ") and words in said.out
    assert answer(capsys, f"help {command}").out == answer(capsys, f"--help {command}").out == said.out


def test_the_help_takes_several_keys_those_at_the_top_too(capsys):
    said = answer(capsys, "--help seed ppo.kl_coef")
    assert (
        said.out.startswith("seed  (default 0; a whole number from 0 to 4294967295)") and "\nppo.kl_coef  (" in said.out
    )
    refused(capsys, "--help ppo.lr seed", ["ppo.lr", "nearest", "learning_rate"])


def test_the_help_of_a_key_that_is_none_names_the_nearest(capsys):
    refused(capsys, "--help ppo.kl_koef", ["ppo.kl_koef", "nearest: ppo.kl_coef"])
