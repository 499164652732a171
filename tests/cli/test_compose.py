"""What a configuration composes to: every yaml with every experiment, few leaves, `none` that prunes, no stray keys."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import TINY, leaves
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

import align
from align.build.checks import check_ppo
from align.build.plugs import make_or_keep
from align.build.rewards import check_reward
from align.build.runtime import Runtime
from align.cli import compose, main
from align.cli.compose import ROOT_KEYS, SHARED, plan_of
from align.cli.errors import message_of
from align.config.values import NONE
from align.errors import AlignError, AlignWarning
from align.imports import locate
from align.plan.plan import RunPlan

ROOT = Path(__file__).resolve().parents[2]
HOMES = (ROOT / "conf", ROOT / "plugins" / "help_desk" / "help_desk" / "conf")
FILES = sorted(
    file.relative_to(home).with_suffix("") for home in HOMES for file in home.rglob("*.yaml") if file.parent != home
)
EXPERIMENTS = [None, *(file.name for file in FILES if file.parent.name == "experiment")]
GROUPS = {
    group: [f for f in FILES if f.parent.as_posix() == group] for group in sorted({f.parent.as_posix() for f in FILES})
}
NODES = {"data": ("pretrain", "sft", "rm", "ppo"), "peft": ("sft", "rm", "actor", "critic")}
NODES["zero"] = ("actor", "critic", "reference")


def composed(overrides: list[str]):
    """The configuration, through the checks that the command line makes."""
    return compose.composed(overrides)[0]


def planned(words: str | list[str]) -> RunPlan:
    """The plan of a run."""
    return plan_of(composed(words.split() if isinstance(words, str) else words))


def stage_of(words: list[str], name: str):
    """A stage, built."""
    plan = planned(words)
    stage = plan.stage(name)
    return locate(stage.spec.build)(stage, Runtime(plan))


def check(words: list[str]) -> None:
    """Raises what PPO's check raises before a model loads."""
    plan = planned(words)
    check_ppo(plan.stage("ppo"), plan, Runtime(plan).device, {})


def choices(file: Path) -> list[str]:
    group = file.parent.as_posix()
    if group in NODES:
        return [f"{group}@{node}.{group}={file.name}" for node in NODES[group]]
    return [f"{group}={file.name}"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("turn", range(max(map(len, GROUPS.values()))))
def test_every_yaml_composes_with_every_experiment(turn, experiment):
    """In each turn one choice of every group at once; a group with fewer begins again."""
    overrides = [f"experiment={experiment}"] if experiment else []
    overrides.append("stages=[pretrain,sft,rm,ppo]")
    chosen = {
        group: files[turn % len(files)] for group, files in GROUPS.items() if group not in ("experiment", "stage")
    }
    overrides += [word for file in chosen.values() for word in choices(file)]
    if chosen["critic"].name == "none":
        overrides = [word for word in overrides if "@critic." not in word]
    cfg = composed(overrides)
    OmegaConf.resolve(cfg)
    stages = set(cfg) - {*ROOT_KEYS, *SHARED}
    assert stages >= set(cfg.stages) and set(cfg) >= set(ROOT_KEYS)


def text_of(file: Path) -> str:
    return next(path for home in HOMES if (path := (home / file).with_suffix(".yaml")).exists()).read_text()


@pytest.mark.parametrize("file", [Path("config"), *FILES], ids=str)
def test_every_yaml_says_what_it_is_and_the_command_that_uses_it(file):
    lines = text_of(file).splitlines()
    comment = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert comment.startswith("# ") and "align " in comment
    assert len(comment) < 180


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_command_of_a_yaml_chooses_it(file):
    text = text_of(file)
    command = next(line for line in text.splitlines() if ": align " in line).rpartition(": align ")[2]
    words = [word.replace("=FILE", "=a.jsonl").replace("=FOLDER", "=a") for word in command.split()]
    chosen = compose.composed(words)[1]
    picked = {(group.partition("@")[0], name) for group, name in chosen.items()}
    assert (file.parent.as_posix(), file.name) in picked


@pytest.mark.parametrize(("words", "most"), [("experiment=tiny", 185), ("stages=[sft]", 60), ("stages=[dpo]", 80)])
def test_settings_of_stages_that_do_not_run_are_not_composed(words, most):
    assert leaves(OmegaConf.to_container(composed([words]), resolve=False)) <= most


@pytest.mark.parametrize(
    ("choice", "key"),
    [
        ("critic=none", "critic"),
        ("peft@sft.peft=none", "sft.peft"),
        ("peft@actor.peft=none", "actor.peft"),
        ("zero@reference.zero=none", "reference.zero"),
        ("tracker=none", "tracker"),
    ],
)
def test_none_composes_to_one_leaf(choice, key):
    assert OmegaConf.select(composed([*TINY.split(), choice]), key) == {"_target_": NONE}


def test_none_prunes_what_an_experiment_sets_and_refuses_what_is_typed(tmp_path, monkeypatch):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n# Experiment: mine: align experiment=mine\n"
        "critic:\n  learning_rate: 1e-3\nactor:\n  peft:\n    r: 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert composed(["experiment=mine"]).critic.learning_rate == 1e-3
    cfg = composed(["experiment=mine", "critic=none", "peft@actor.peft=none"])
    assert cfg.critic == {"_target_": NONE} and cfg.actor.peft == {"_target_": NONE}
    for typed in ("critic.learning_rate=1", "+critic.typo=1"):
        with pytest.raises(Exception) as error:
            composed(["experiment=mine", "critic=none", typed])
        assert typed.partition("=")[0].lstrip("+") in message_of(error.value) and "critic" in message_of(error.value)


@pytest.mark.parametrize("typed", ["+ppo.typo=1", "++ppo.typo=1", "+typo=1", "+rollout.typo=1", "+reference.typo=1"])
def test_a_stray_key_is_refused(typed):
    with pytest.raises(AlignError, match="no such key"):
        composed([*TINY.split(), typed])


def test_a_stray_key_is_answered_with_names_that_are_near():
    with pytest.raises(AlignError, match=r"nearest: ppo\.kl_coef"):
        composed(["+ppo.kl_koef=1"])


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("sft.args.weight_decay=0.1", "sft.args.weight_decay", 0.1),
        ("rm.args.center_rewards_coefficient=0.01", "rm.args.center_rewards_coefficient", 0.01),
        ("reward=fn reward.args.words=[a,b]", "reward.args.words", ["a", "b"]),
        ("actor.peft.use_rslora=true", "actor.peft.use_rslora", True),
        ("advantage.more=1", "advantage.more", 1),
        ("reward=kind_words reward.args.more=1", "reward.args.more", 1),
    ],
)
def test_arguments_of_other_peoples_code_are_open(typed, key, value):
    assert OmegaConf.select(composed(typed.split()), key) == value


def test_local_settings_of_the_folder_one_stands_in_are_used(tmp_path, monkeypatch):
    (tmp_path / "conf" / "local").mkdir(parents=True)
    (tmp_path / "conf" / "local" / "default.yaml").write_text("# @package _global_\nruns: elsewhere\nseed: 7\n")
    monkeypatch.chdir(tmp_path)
    cfg = composed(["experiment=tiny"])
    assert (cfg.runs, cfg.seed) == ("elsewhere", 7)
    assert composed(["seed=3"]).seed == 3


def test_a_yaml_that_forgets_its_package_is_told_so(tmp_path, monkeypatch):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("seed: 7\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AlignError, match="@package _global_"):
        composed(["experiment=mine"])


def test_a_yaml_with_the_name_of_one_of_ours_is_refused_when_it_is_chosen(tmp_path, monkeypatch):
    (tmp_path / "conf" / "reward").mkdir(parents=True)
    (tmp_path / "conf" / "reward" / "fn.yaml").write_text("# mine\n_target_: mine\n")
    monkeypatch.chdir(tmp_path)
    assert composed(["experiment=tiny"]).name == "tiny"
    with pytest.raises(AlignError, match=r"both align and \./conf have one"):
        composed(["reward=fn"])


def test_plugins_and_align_have_no_plug_of_the_same_name():
    from align.cli.plugins import plugs

    names = [(group, name) for group, name, *_ in plugs()]
    assert len(names) == len(set(names))


def test_a_sum_of_a_model_and_a_plugin_composes_and_builds():
    words = "reward=sum +reward@reward.terms.rm=model +reward@reward.terms.polite=kind_words"
    stage = planned([*TINY.split(), *words.split(), "+reward.weights.polite=0.5"]).stage("ppo")
    reward = check_reward(stage.sections.reward)
    assert {name: weight.at(0) for name, weight in reward.weights.items()} == {"rm": 1.0, "polite": 0.5}
    assert reward.terms["polite"](*_rollout_of(["please wait", "go"])).score_B.tolist() == pytest.approx([0.2, 0.0])
    assert stage.input("reward").key == "reward.terms.rm.path"


def test_diversity_is_a_reason_to_evaluate():
    words = ["stages=[sft]", "model=a", "evaluate.diversity=true", "data@ppo.data=help_desk"]
    assert [stage.name for stage in planned(words).stages] == ["sft", "evaluate"]
    assert stage_of(words, "evaluate").data is not None


def test_settings_of_answers_that_nobody_asks_for_are_warned_of():
    words = ["stages=[sft,evaluate]", "model=a"]
    with pytest.warns(AlignWarning, match=r"evaluate\.metrics=\[accuracy\].*use evaluate\.shots=\[0\]"):
        planned([*words, "evaluate.metrics=[accuracy]"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned([*words, "evaluate.metrics=[accuracy]", "evaluate.shots=[0]"])
        planned(words)


def test_evaluation_takes_the_reward_that_a_schedule_ends_with():
    words = "reward=sum +reward@reward.terms.polite=kind_words reward.weights.polite=[[0,1.0],[3,0.5]]"
    stage = stage_of([*TINY.split(), *words.split(), "stages=[evaluate]", "actor.path=a"], "evaluate")
    reward = stage.make_reward({}, Path("unused"), SimpleNamespace(say=print), None)
    assert stage.ppo_steps == 3 and reward.weights["polite"].at(stage.ppo_steps) == 0.5


def test_rloo_needs_no_critic():
    words = [*TINY.split(), "advantage=rloo", "critic=none", "rollout.samples_per_prompt=4"]
    check(words)
    assert planned(words).stage("ppo").input("critic") is None


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "dr_grpo", "reinforce_pp"])
@pytest.mark.parametrize("loss", ["clip", "clip_higher", "dual_clip", "gspo"])
def test_every_advantage_without_a_critic_goes_with_every_loss(advantage, loss):
    words = [f"advantage={advantage}", f"policy_loss={loss}", "critic=none", "rollout.samples_per_prompt=4"]
    check([*TINY.split(), *words])


def test_ppo_clip_is_the_clip_of_the_policys_loss():
    for loss, clip in (("clip", 0.1), ("clip_higher", 0.1), ("dual_clip", 0.1), ("gspo", 0.0003)):
        sections = planned([*TINY.split(), "ppo.clip=0.1", f"policy_loss={loss}"]).stage("ppo").sections
        assert make_or_keep(sections.policy_loss).clip == clip


def test_a_loss_may_be_a_function_of_the_folder_one_stands_in(tmp_path, monkeypatch):
    (tmp_path / "conf" / "policy_loss").mkdir(parents=True)
    (tmp_path / "conf" / "policy_loss" / "mine.yaml").write_text("_target_: own_loss.reinforce\nscale: 2.0\n")
    (tmp_path / "own_loss.py").write_text(
        "def reinforce(logp_BT, old_logp_BT, advantage_BT, mask_BT, scale):\n"
        "    return -scale * advantage_BT * logp_BT\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [*TINY.split(), "policy_loss=mine"]
    sections = planned([*words, "policy_loss.scale=3"]).stage("ppo").sections
    assert make_or_keep(sections.policy_loss)(-1.0, -1.0, 2.0, True) == 6.0
    with pytest.raises(AlignError, match=r"policy_loss\.scael"):
        make_or_keep(planned([*words, "+policy_loss.scael=3"]).stage("ppo").sections.policy_loss)


def test_one_stage_may_be_named_without_brackets():
    assert [stage.name for stage in planned("stages=sft model=a").stages] == ["sft"]


def _rollout_of(completions: list[str]) -> tuple:
    import torch

    from align.types import RewardState, Rollout, Scores, Texts

    size = len(completions)
    tokens = torch.ones(size, 1, dtype=torch.long)
    mask = tokens.bool()
    number = torch.arange(size)
    rollout = Rollout(tokens, mask, tokens, mask, mask, tokens.float(), number, number, number > -1, number, 1.0, {})
    return rollout, Texts([""] * size, completions, [[1]] * size), RewardState(0, Scores(), lambda *a: None)


def test_a_run_is_composed_once_and_a_yaml_may_make_it_a_sweep(tmp_path, monkeypatch):
    """Hydra alone composes twice, the first time to learn whether it is a sweep."""
    composed = []
    compose = ConfigLoaderImpl._load_configuration_impl
    monkeypatch.setattr(
        ConfigLoaderImpl, "_load_configuration_impl",
        lambda *args, **given: composed.append(given.get("overrides") or args[2]) or compose(*args, **given),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "run_pipeline", lambda cfg: seen.append(cfg.seed) or {"run": "runs"})
    monkeypatch.setattr(main, "_show_table", lambda results: None)
    seen: list[int] = []
    align.run(["stages=[pretrain]", "seed=3"])
    assert seen == [3] and len(composed) == 1

    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "seeds.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
        "  sweep:\n    dir: sweep\n"
    )
    align.run(["stages=[pretrain]", "experiment=seeds"])
    assert seen == [3, 1, 2]
