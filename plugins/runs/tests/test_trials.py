"""Plan of a search from its words, before the first trial: spaces by setting, plugs that bring settings, refusals."""

import shlex

import optuna
import pytest
from shell import SFT, align, refused

from align_runs.trials import planned

TINY = "experiment=tiny debug=default"
MIXED = "stages=sft model={base} data@sft.data=mixture " + " ".join(
    f"+data@sft.data.parts.{name}=prompt_completion sft.data.parts.{name}.path=demos.jsonl"
    for name in ("topic", "mood")
)


def search(words: str):
    return planned(shlex.split(words))


def test_whole_numbers_where_the_setting_takes_them_alone():
    found = search(f"{TINY} sft.peft.r=log(1,64) sft.epochs=log(1,4) sft.learning_rate=log(1e-4,1e-2)")
    assert [space.whole for space in found.trials.values] == [True, False, False]
    referring = search(f"{TINY} stages=[pretrain,dpo] dpo.learning_rate=log(1e-4,1)")
    assert [space.whole for space in referring.trials.values] == [False]
    assert [space.whole for space in search(f"{TINY} advantage.lam=uniform(0,1)").trials.values] == [False]


def test_a_setting_that_a_choice_lacks_is_searched_with_the_others_only():
    found = search(f"{TINY} peft@sft.peft=choice(lora,houlsby) sft.peft.r=range(1,65) sft.epochs=range(1,4)")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [found.trials.suggest(study.ask()) for _ in range(12)]
    for words in drawn:
        keys = [word.partition("=")[0] for word in words]
        lora = words[0] == "peft@sft.peft=lora"
        assert keys == ["peft@sft.peft", *(["sft.peft.r"] if lora else []), "sft.epochs"]
    assert len({words[0] for words in drawn}) == 2


@pytest.mark.parametrize(
    ("words", "figure", "direction"),
    [
        (TINY, "ppo.true_score", "maximize"),
        (f"{TINY} stages=[pretrain,sft]", "sft.eval_loss", "minimize"),
        (f"{TINY} stages=[pretrain,rm]", "rm.eval_accuracy", "maximize"),
        (f"{TINY} stages=[pretrain,dpo]", "dpo.eval_accuracy", "maximize"),
        (f"{TINY} evaluate.judge=null", "ppo.best.objective", "maximize"),
        (f"{TINY} evaluate.judge=null watch=judge watch.judge.fn=kind_words.kind_words", "ppo.best.judge", "maximize"),
        (f"{TINY} evaluate.judge=null ppo.eval_every=0", "ppo.score", "maximize"),
        (f"{TINY} objective=ppo.kl", "ppo.kl", "minimize"),
        (f"{TINY} objective=ppo.true_polite direction=maximize", "ppo.true_polite", "maximize"),
        (f"{TINY} objective=ppo.length direction=maximize", "ppo.length", "maximize"),
    ],
)
def test_the_objective_is_the_held_out_score_of_the_last_stage_that_trains(words, figure, direction):
    found = search(f"{words} seed=range(1,3)")
    assert (found.figure, found.direction) == (figure, direction)


def test_trials_are_judged_on_rows_that_are_not_the_test(here):
    assert "evaluate.split=eval" in search(f"{TINY} seed=range(1,3)").added
    assert search(f"{TINY} seed=range(1,3) evaluate.split=test").added == []


def test_a_search_adds_evaluations_for_its_pruner_and_says_why_it_cannot():
    sft, split = f"{TINY} stages=[pretrain,sft] seed=range(1,3)", "evaluate.split=eval"
    assert search(sft).added == [split, "sft.args.eval_strategy=steps", "sft.args.eval_steps=0.125"]
    assert search(f"{sft} sft.args.eval_steps=5").added == [split, "sft.args.eval_strategy=steps"]
    assert search(f"{sft} sft.args.eval_strategy=epoch").added == [split]
    assert search(f"{TINY} seed=range(1,3) ppo.eval_every=0").unpruned == "ppo.eval_every=0"
    assert "at the end alone" in search(f"{TINY} stages=[pretrain] seed=range(1,3)").unpruned


def test_a_trials_command_holds_what_is_fixed_added_and_drawn():
    found = search(f"{TINY} 'runs=it''s here' seed=3 name=mine sft.epochs=range(1,4)")
    words = found.words(["sft.epochs=2"], 7, "onednn")
    assert words[:2] == TINY.split() and words[-2:] == ["runs='its here/mine'", "name=trial_7"]
    assert {"seed=3", "cpu_linear=onednn", "sft.epochs=2", "evaluate.split=eval"} < set(words)
    assert found.command(["sft.epochs=2"]) == f"align {TINY} 'runs=its here' seed=3 sft.epochs=2" and found.seed == 3


WRONG = [
    ("nothing to search", TINY, ["nothing to search", "sft.learning_rate=log(1e-4,1e-1)"]),
    ("no trials", "seed=range(1,3) trials=0", ["trials=0: it is no number", "1 or more"]),
    ("part of a trial", "seed=range(1,3) trials=2.5", ["trials=2.5", "whole number"]),
    ("slip of the hand", "seed=range(1,3) trails=3", ["trails", "Use trials"]),
    ("unknown sampler", "seed=range(1,3) sampler=tpee", ["sampler=tpee", "tpe, random"]),
    ("sampler without its package", f"{TINY} seed=range(1,3) sampler=gp", ["sampler=gp", "pip install scipy"]),
    ("unknown pruner", "seed=range(1,3) pruner=mean", ["pruner=mean", "median, hyperband, none"]),
    ("unknown direction", "seed=range(1,3) direction=up", ["direction=up", "minimize, maximize"]),
    ("flag", "-m seed=range(1,3)", ["-m", "no flags but --help"]),
    ("grid", f"{TINY} seed=1,2", ["several values", "seed=choice(1,2)"]),
    ("twice", f"{TINY} sft.epochs=2 sft.epochs=range(1,4)", ["sft.epochs is given twice"]),
    ("name in search", f"{TINY} name=choice(a,b)", ["name=choice(a,b)", "belongs to the search"]),
    ("stages in search", f"{TINY} stages=choice(sft,rm)", ["stages", "same in every trial"]),
    ("log through 0", f"{TINY} sft.learning_rate=log(0,1)", ["sft.learning_rate=log(0,1)", "above 0"]),
    ("unknown key", f"{TINY} sft.learnig_rate=log(1e-4,1)", ["sft.learnig_rate", "nearest: sft.learning_rate"]),
    ("unknown key of a plug", f"{TINY} sft.peft.rr=range(1,4)", ["sft.peft.rr", "nearest: sft.peft.r"]),
    ("unknown option", f"{TINY} peft@sft.peft=choice(lora,lorra)", ["lorra", "nearest: lora"]),
    ("range of plugs", f"{TINY} peft@sft.peft=log(1,3)", ["it is a plug", "Use 'peft@sft.peft=choice("]),
    ("value for a plug", f"{TINY} sft.peft=choice(lora,dora)", ["use peft@sft.peft=lora"]),
    ("end out of range", f"{TINY} sft.batch_size=range(0,4)", ["sft.batch_size=0: use a whole number from 1"]),
    ("upper end out of range", f"{TINY} rm.learning_rate=log(1e-4,2)", ["rm.learning_rate=2", "at most 1"]),
    ("option out of range", f"{TINY} precision=choice(fp32,fp8)", ["precision=fp8", "bf16"]),
    ("no number", f"{TINY} sft.path=log(1,4)", ["sft.path=log(1,4)", "is auto, no number"]),
    ("truth", f"{TINY} reward.normalize=uniform(0,1)", ["reward.normalize", "choice(true,false)"]),
    ("parts of a whole number", f"{TINY} sft.peft.r=uniform(4,16)", ["sft.peft.r", "range(4,17)"]),
    ("nothing to start from", "stages=sft sft.epochs=range(1,4)", ["sft.path", "model=FOLDER"]),
    (
        "objective of no stage",
        f"{TINY} seed=range(1,3) objective=dpo.eval_loss",
        ["no stage dpo", "ppo.true_score"],
    ),
    ("objective without direction", f"{TINY} seed=range(1,3) objective=ppo.length", ["direction=minimize"]),
    (
        "measure that is searched",
        f"{TINY} evaluate.judge=null ppo.kl_coef=log(1e-2,1)",
        ["ppo.best.objective", "Use objective=ppo.score"],
    ),
    (
        "part that a mixture lacks",
        f"{MIXED} sft.data.weights.topc=uniform(0.2,0.8)",
        ["sft.data.weights.topc", "no part topc", "nearest: sft.data.weights.topic"],
    ),
    (
        "file that is not there",
        "stages=sft model={base} sft.data.path=choice(demos.jsonl,demo.jsonl)",
        ["sft.data.path=demo.jsonl"],
    ),
    ("no rows held out", f"{SFT} sft.epochs=range(1,4) sft.data.eval_share=0", ["eval_share=0 holds out no rows"]),
]


@pytest.mark.parametrize(("words", "expected"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_bad_words_are_refused_before_anything_is_made(here, capsys, words, expected):
    refused(capsys, f"search {words.replace('{base}', 'nowhere')}", expected)
    assert not (here / "runs").exists()


def test_help_is_its_own(capsys):
    printed = align(capsys, "search seed=range(1,3) --help")
    assert printed.status == 0 and printed.out.startswith("usage: align search") and "pruner=median" in printed.out
