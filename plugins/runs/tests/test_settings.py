"""Settings that differ, by hand: plugs by name, short names, order."""

from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from align.cli.choices import GLOBAL
from align.cli.plugins import plugs
from align_runs.runs import DONE, Run, numbers
from align_runs.settings import Kind, differing, flat, plug_name
from align_runs.show import shorten
from align_runs.stages import is_headline
from align_runs.table import Table, sort, tabulate

LORA = {"_target_": "peft.LoraConfig", "r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


def run(peft: dict = LORA, stages: tuple[str, ...] = ("sft",), **more) -> dict:
    sft = {"_target_": "align.stages.sft.stage.SFT", "peft": peft, "epochs": 1.0, "args": {}, **more}
    ppo = {"_target_": "align.stages.ppo.stage.PPOStage", "steps": more.get("epochs", 1)}
    return flat({"seed": 0, "name": str(more), "sft": sft, "ppo": ppo}, list(stages))


def test_equal_runs_differ_in_nothing_even_under_other_names():
    assert differing([run(epochs=1), run(epochs=1.0)]) == []


def test_a_setting_below_a_plug_counts_among_plugs_of_one_kind():
    assert differing([run(), run(LORA | {"r": 8})]) == ["sft.peft.r"]
    dora = LORA | {"use_dora": True}
    assert differing([run(), run(dora)]) == ["sft.peft"]
    assert differing([run(), run(dora), run(dora | {"r": 8})]) == ["sft.peft", "sft.peft.r"]


def test_a_setting_that_one_run_lacks_differs_unless_it_is_aligns_own():
    """Each run has all of align's own settings; one that lacks some is of another version."""
    assert differing([run(), run(args={"max_steps": 3})]) == ["sft.args.max_steps"]
    assert differing([run(), run(loraplus_lr_ratio=None)]) == []


def test_settings_of_stages_that_do_not_run_are_left_out():
    assert differing([run(epochs=1), run(epochs=2)]) == ["sft.epochs"]
    both = [run(epochs=n, stages=("sft", "ppo")) for n in (1, 2)]
    assert differing(both) == ["sft.epochs", "ppo.steps"]
    assert differing([run(stages=("sft", "ppo")), run()]) == []


def test_a_role_counts_where_a_stage_reads_it():
    """As the stages' specs have it: dpo reads the actor, but none of PPO's options."""
    node = {"_target_": "align.config.Any"}
    roles = {"actor": {**node, "path": "a", "peft": LORA, "learning_rate": 1.0}, "critic": {**node, "learning_rate": 1}}
    others = {"ppo": {**node, "steps": 3, "data": {**node, "path": "p"}}, "rollout": {**node, "temperature": 1.0}}
    settings = {"seed": 0, "dpo": {**node, "beta": 0.1}, "preferences": {**node, "samples": 4}, **roles, **others}
    actor = {"actor", "actor.path", "actor.peft", "actor.learning_rate", *(f"actor.peft.{k}" for k in LORA)}
    read = {
        "sft": set(),
        "dpo": {"dpo", "dpo.beta", *actor},
        "preferences": {"preferences", "preferences.samples", "rollout", "rollout.temperature"},
    }
    for stage, keys in read.items():
        assert set(flat(settings, [stage])) == keys - {"actor.peft._target_"} | {"seed"}
    ppo = set(flat(settings, ["ppo"]))
    assert {"ppo.steps", "critic.learning_rate", "actor.learning_rate"} < ppo and "dpo.beta" not in ppo


def test_headlines_are_figures_of_a_stage_of_which_less_or_more_is_better():
    rm = {"eval_accuracy": 0.8, "pairs": 9, "report": {"accuracy": 0.8, "bins": [{"right": 0.5}]}, "seconds": 3}
    ppo = {"true_score": 0.5, "true_correct": 0.5, "kl": 2.0, "length": 40, "best": {"objective": 0.1, "kl": 1.0}}
    found = numbers({"rm": rm, "ppo": ppo, "base": {"true_score": 0.1}, "mine": {"loss": 1}, "seconds": 9})
    headlines = ["rm.eval_accuracy", "ppo.true_score", "ppo.kl", "ppo.best.objective", "mine.loss", "seconds"]
    assert [name for name in found if is_headline(name)] == headlines


def test_a_plug_is_named_by_the_choice_that_it_is_most_like():
    assert plug_name("peft", LORA) == "lora" and plug_name("peft", LORA | {"r": 4}) == "lora"
    assert plug_name("peft", LORA | {"use_dora": True, "r": 4}) == "dora"
    assert plug_name("peft", {"_target_": "align.config.none"}) == "none"
    assert plug_name("peft", {"_target_": "peft.HRAConfig", "r": 8}) == "HRA"
    assert plug_name("critic", {"_target_": "align.roles.specs.Critic", "backbone": "head", "path": "auto"}) == "head"
    assert Kind.of(LORA).named("sft.peft") == "lora"


def test_every_choice_of_every_group_is_named_as_itself():
    choices = [(group, name) for group, name, *_ in plugs() if group not in GLOBAL]
    GlobalHydra.instance().clear()
    with initialize_config_module("align.conf", version_base="1.3"):
        cfg = compose("align", [f"+{group}@all.{group}_{name}={name}" for group, name in choices])
    nodes = OmegaConf.to_container(cfg, resolve=True)["all"]
    named = {(group, name): plug_name(group, nodes[f"{group}_{name}"]) for group, name in choices}
    assert named == {(group, name): name for group, name in choices}


def test_a_plug_below_a_name_of_ones_own_is_named_as_in_its_group():
    function = {"_target_": "align.rewards.function.FunctionReward", "fn": "mine.score", "args": {}, "name": None}
    assert Kind.of(function).named("reward.terms.polite") == Kind.of(function).named("watch.judge") == "fn"
    assert Kind.of({"_target_": "align.config.none"}).named("evaluate.general") == "none"


def test_names_are_shortened_as_far_as_they_stay_apart():
    keys = ["sft.peft", "rm.peft", "sft.peft.r", "seconds", "sft.seconds", "ppo.kl"]
    short = ["sft.peft", "rm.peft", "r", "seconds", "sft.seconds", "kl"]
    assert list(shorten(keys).values()) == short


def of_runs(columns: list[str] | None, kl_coef: list[float], came_to: list[float]) -> Table:
    pairs = enumerate(zip(kl_coef, came_to, strict=True))
    runs = [Run(str(i), Path(), DONE, {"ppo.kl_coef": a}, {"ppo.kl_coef": b, "ppo.kl": 2.0 - i}) for i, (a, b) in pairs]
    return tabulate(runs, columns)


def test_a_figure_that_echoes_a_setting_is_the_setting():
    made = of_runs(["kl_coef"], [0.1, 0.1], [0.1, 0.1])
    assert (made.settings, made.figures, made.notes) == (["ppo.kl_coef"], [], [])
    assert of_runs(None, [0.1, 0.2], [0.1, 0.2]).figures == ["ppo.kl"]
    assert of_runs(["all"], [0.1, 0.2], [0.1, 0.2]).figures == ["ppo.kl"]


def test_a_figure_that_came_to_another_value_than_the_setting_has_a_name_of_its_own():
    made = of_runs(["kl_coef"], [0.1, 0.2], [0.4, 0.3])
    assert (made.settings, made.figures) == (["ppo.kl_coef"], [])
    assert made.notes == ["ppo.kl_coef is the setting; card.json has another value: --columns ppo.kl_coef.card"]
    both = of_runs(["ppo.kl_coef", "kl_coef.card"], [0.1, 0.2], [0.4, 0.3])
    assert both.frame[[*both.settings, *both.figures]].to_numpy().tolist() == [[0.1, 0.4], [0.2, 0.3]]
    assert both.notes == []
    sort(both, "kl_coef.card", descending=False)
    assert both.frame["run"].to_list() == ["1", "0"]
