"""What is refused before a model loads: one screen, what, where and what to write instead; nothing is made."""

import copy

import pytest
import yaml
from command_line import PPO, RM, SFT, TINY, answer, refused, stand_in, write_data
from omegaconf import OmegaConf

import align.cli.main  # noqa: F401 - registers the search path
from align.cli.compose import composed, plan_of
from align.errors import AlignError, AlignWarning

NAMES = [
    ("experiment", "experiment=tin", ["experiment=tin", "nearest: tiny"]),
    ("group", "rewrad=fn", ["rewrad", "nearest: reward"]),
    ("choice", "reward=fnn", ["reward=fnn", "nearest: fn", "kind_words", "sum"]),
    ("choice of a facet", "peft@actor.peft=lorra", ["nearest: lora"]),
    ("facet without its node", "peft=none", ["peft@actor.peft", "peft@sft.peft"]),
    ("value for a facet", "sft.peft=none", ["sft.peft=none", "use peft@sft.peft=none"]),
    ("value for a data node", "sft.data=help_desk", ["use data@sft.data=help_desk"]),
    ("null for a group", "critic=null", ["null", "GROUP=none"]),
    ("plus before a group", "+experiment=tiny", ["experiment", "without +"]),
    ("key", "ppo.stepps=1", ["ppo.stepps", "nearest: ppo.steps"]),
    ("another program's name of a key", "actor.lr=1e-5", ["actor.lr", "actor.learning_rate"]),
    ("key with a plus", "+ppo.stepps=1", ["ppo.stepps", "nearest: ppo.steps"]),
    ("key with two", "++ppo.stepps=1", ["ppo.stepps", "nearest: ppo.steps"]),
    ("root key", "sede=1", ["sede", "nearest: seed"]),
    ("root key with a plus", "+sede=1", ["sede", "nearest: seed"]),
    ("command", "plugin", ["plugin", "nearest: align plugins"]),
    ("word", "run tiny", ["tiny is no setting", "KEY=VALUE"]),
    ("seed", "seed=abc", ["seed=abc", "whole number"]),
    ("name", "name=a/b", ["name=a/b", "slashes"]),
    ("number in words", "ppo.steps=abc", ["ppo.steps=abc", "whole number"]),
    ("part of a whole number", "ppo.steps=2.5", ["ppo.steps=2.5", "whole number"]),
    ("number that is a word", "ppo.gamma=high", ["ppo.gamma=high", "number"]),
    ("truth in words", "reward.normalize=maybe", ["reward.normalize=maybe", "true or false"]),
    ("budget in parts of a token", "ppo.micro_batch_tokens=2.5", ["ppo.micro_batch_tokens=2.5", "whole number"]),
    ("checkpointing a little", "ppo.gradient_checkpointing=some", ["ppo.gradient_checkpointing=some", "true or false"]),
    ("number out of range", "sft.batch_size=-2", ["sft.batch_size=-2", "from 1"]),
    ("value that must be given", "reward=fn", ["reward.fn is not set", "my_rewards.brevity"]),
    ("pattern that must be given", "reward=format", ["use \"reward.pattern='<think>.*</think>.*'\""]),
    ("stage", "stages=[sft,pppo]", ["pppo", "nearest: ppo", "evaluate"]),
    ("loss of a stage", "stages=[ipo]", ["no stage ipo", "use stages=[dpo] dpo.loss=ipo"]),
    ("method of no stage", "stages=[sft,orpo]", ["no stage orpo", "experimental", "dpo.loss=[sigmoid,sft]"]),
    ("method without a reference", "stages=simpo", ["no stage simpo", "dpo.loss=sigmoid_norm"]),
    ("stage twice", "stages=[sft,sft]", ["sft", "twice"]),
    ("no stages", "stages=[]", ["stages=[]", "stages=[sft,rm]"]),
    ("stages are a number", "stages=3", ["stages=3", "stages=[sft,rm]"]),
    ("list without brackets", "stages=sft,rm", ["stages=[sft,rm]", "-m"]),
    ("key of a critic that is none", "critic=none critic.learning_rate=1", ["critic.learning_rate", "critic"]),
    ("key of a peft that is none", "peft@actor.peft=none actor.peft.r=3", ["actor.peft.r", "actor.peft"]),
    (
        "key of a watch that is none",
        "watch.judge.fn=json.loads",
        ["watch.judge.fn", "watch.judge comes with watch=judge"],
    ),
    ("plug of a watch that is none", "reward@watch.judge=fn", ["watch.judge comes with watch=judge"]),
    (
        "key of another choice",
        "data@sft.data=mixture +data@sft.data.parts.a=text sft.data.weight.a=1",
        ["sft.data.weight", "nearest: sft.data.weights"],
    ),
    ("peft of dpo", "stages=[dpo] peft@dpo.peft=lora", ["peft@dpo.peft", "use peft@actor.peft=NAME"]),
    ("peft of kto with a plus", "stages=[kto] +peft@kto.peft=lora", ["kto.peft", "use peft@actor.peft=NAME"]),
    ("key of dpo's peft", "stages=[dpo] dpo.peft.r=4", ["dpo.peft", "use peft@actor.peft=NAME", "actor.peft.KEY"]),
    ("key of dpo's peft with a plus", "stages=[dpo] +dpo.peft.r=4", ["dpo.peft", "actor.peft.KEY"]),
    ("bracket that is missing", "'sft.peft.r=choice(4,8'", ["sft.peft.r=choice(4,8 cannot be read: a ) is missing"]),
    ("bracket that does not begin", "'stages=sft,rm]'", ["stages=sft,rm]", "a [ is missing"]),
    ("node taken out", "~critic", ["~critic", "critic=none"]),
    ("plain value for a node", "ppo=3", ["ppo=3", "ppo.KEY=VALUE"]),
    ("group of plugs", "plugins rewrad", ["rewrad", "reward"]),
    ("unquoted value", "model=a=b", ["model=a=b", "use \"model='a=b'\""]),
    ("missing folder of yaml", "--config-dir nowhere seed=1", ["nowhere"]),
    ("section that no stage reads", "stages=[sft] ppo.stepps=3", ["ppo.stepps=3", "nearest: ppo.steps"]),
    ("settings of stages", "'stages={a:1}'", ["stages: it is a list", "use stages=[A,B]"]),
    ("instance of a stage", "stages=[rm,rm@2] rm@2.epochs=1", ["rm and rm@2 share the section rm", "use rm.epochs"]),
    ("instance with a plus", "stages=[rm,rm@2] +rm@2.data.path=a", ["rm and rm@2 share", "use rm.data.path"]),
    ("unset variable", "'ppo.steps=${oc.env:NO_STEPS}'", ["ppo.steps", "no NO_STEPS", "use export NO_STEPS=VALUE"]),
    ("unset variable of a plug", "'actor.peft.r=${oc.env:NO_R}'", ["actor.peft.r", "use export NO_R=VALUE"]),
    ("export of no folder", "export runs/nope --to x", ["export runs/nope", "no folder nope in runs"]),
    ("explanation of no folder", "plugins --explain lora model=./nowhere", ["model=./nowhere", "no such folder"]),
    ("explanation of no number", "plugins --explain lora r=abc", ["peft.r=abc", "a whole number"]),
    ("reference to nothing", "sft.epochs=${nothing}", ["sft.epochs", "nothing"]),
]

VALUES = [
    ("seed=-1", ["seed=-1", "from 0"]),
    ("seed=1.5", ["seed=1.5"]),
    ("name=", ["name"]),
    ("name=..", ["name=..", "dot"]),
    ("model=true", ["model=true"]),
    ("device=true", ["device=true"]),
    ("precision=fp8", ["precision=fp8", "bf16"]),
    ("runs=null", ["runs=null"]),
    ("ppo.steps=0", ["ppo.steps=0", "from 1"]),
    ("ppo.batch_size=0", ["ppo.batch_size=0"]),
    ("ppo.minibatches=0", ["ppo.minibatches=0"]),
    ("ppo.micro_batch_size=0", ["ppo.micro_batch_size=0"]),
    ("ppo.micro_batch_tokens=0", ["ppo.micro_batch_tokens=0", "from 1"]),
    ("ppo.micro_batch_tokens=-8", ["ppo.micro_batch_tokens=-8", "from 1"]),
    ("ppo.epochs=0", ["ppo.epochs=0"]),
    ("ppo.kl_coef=-1", ["ppo.kl_coef=-1", "from 0 to 100"]),
    ("ppo.clip=0", ["ppo.clip=0", "above 0"]),
    ("ppo.value_clip=-1", ["ppo.value_clip=-1"]),
    ("ppo.gamma=1.5", ["ppo.gamma=1.5", "from 0 to 1"]),
    ("ppo.lam=-0.1", ["ppo.lam=-0.1"]),
    ("ppo.max_grad_norm=nan", ["ppo.max_grad_norm=nan"]),
    ("ppo.score_clip=0", ["ppo.score_clip=0"]),
    ("ppo.missing_eos_penalty=-1", ["ppo.missing_eos_penalty=-1"]),
    ("ppo.missing_eos_score=nan", ["ppo.missing_eos_score=nan", "a finite number"]),
    ("ppo.missing_eos_score=-1", ["ppo.missing_eos_score=-1", "ppo.missing_eos_penalty=1.0", "use one of them"]),
    ("ppo.kl_in=los", ["ppo.kl_in=los", "reward, loss"]),
    ("ppo.kl_estimator=k4", ["ppo.kl_estimator=k4", "k1, k2, k3"]),
    ("ppo.kl_target=0", ["ppo.kl_target=0", "above 0"]),
    ("ppo.kl_horizon=0", ["ppo.kl_horizon=0", "from 1"]),
    ("ppo.target_kl=0", ["ppo.target_kl=0", "above 0"]),
    ("ppo.critic_warmup=-1", ["ppo.critic_warmup=-1", "from 0"]),
    ("ppo.loss_aggregation=mean", ["ppo.loss_aggregation=mean", "token_mean", "fixed_length"]),
    ("ppo.old_logp=vllm", ["ppo.old_logp=vllm", "trainer, engine"]),
    ("ppo.importance_correction=row", ["ppo.importance_correction=row", "none, token, sequence"]),
    ("ppo.importance_how=cut", ["ppo.importance_how=cut", "truncate, mask"]),
    ("ppo.importance_cap=0", ["ppo.importance_cap=0", "above 0"]),
    ("ppo.max_prompt_tokens=0", ["ppo.max_prompt_tokens=0"]),
    ("ppo.dynamic_sampling=-1", ["ppo.dynamic_sampling=-1", "from 0"]),
    ("ppo.eval_every=-1", ["ppo.eval_every=-1", "from 0"]),
    ("ppo.save_every=-1", ["ppo.save_every=-1"]),
    ("sft.learning_rate=0", ["sft.learning_rate=0", "above 0"]),
    ("sft.learning_rate=inf", ["sft.learning_rate=inf"]),
    ("sft.epochs=0", ["sft.epochs=0"]),
    ("sft.batch_size=0", ["sft.batch_size=0"]),
    ("sft.max_length=1", ["sft.max_length=1", "from 2"]),
    ("sft.adapter=old", ["sft.adapter=old", "continue"]),
    ("rm.learning_rate=-1", ["rm.learning_rate=-1"]),
    ("rm.epochs=-2", ["rm.epochs=-2"]),
    ("rm.batch_size=-2", ["rm.batch_size=-2"]),
    ("rm.max_length=0", ["rm.max_length=0"]),
    ("actor.learning_rate=nan", ["actor.learning_rate=nan"]),
    ("actor.adapter=neu", ["actor.adapter=neu", "new"]),
    ("critic.learning_rate=2", ["critic.learning_rate=2", "at most 1"]),
    ("rollout.temperature=0", ["rollout.temperature=0", "above 0"]),
    ("rollout.max_new_tokens=0", ["rollout.max_new_tokens=0"]),
    ("rollout.samples_per_prompt=0", ["rollout.samples_per_prompt=0"]),
    ("pretrain.steps=0", ["pretrain.steps=0"]),
    ("pretrain.vocab_size=100", ["pretrain.vocab_size=100", "260"]),
    ("pretrain.heads=3", ["pretrain.heads=3", "pretrain.hidden_size=128", "pretrain.heads=4"]),
    ("pretrain.layers=0", ["pretrain.layers=0"]),
    ("pretrain.max_length=1000", ["pretrain.max_length=1000", "pretrain.max_positions"]),
    ("evaluate.samples=0", ["evaluate.samples=0"]),
]

SETTINGS = [
    ("unknown TRL argument", f"{SFT} sft.args.wieght_decay=1", ["sft.args.wieght_decay", "SFTConfig", "weight_decay"]),
    ("TRL argument's value", f"{SFT} sft.args.lr_scheduler_type=bumpy", ["sft.args", "SFTConfig", "bumpy", "cosine"]),
    ("TRL argument of ours", f"{RM} rm.args.num_train_epochs=1", ["rm.args.num_train_epochs", "rm.epochs"]),
    ("unknown PEFT argument", f"{SFT} +sft.peft.rr=1", ["sft.peft.rr", "LoraConfig", "r"]),
    ("unknown PEFT argument of the critic", f"{PPO} +critic.peft.alpha=1", ["critic.peft.alpha", "lora_alpha"]),
    ("unknown argument of an advantage", f"{PPO} +advantage.lambda=1", ["advantage.lambda", "GAE", "lam"]),
    ("a class that is not there", f"{PPO} actor._target_=mine.Actor", ["actor._target_=mine.Actor", "mine"]),
    ("held-out share", f"{SFT} sft.data.eval_share=2", ["sft.data.eval_share=2", "from 0 to 1"]),
    ("device", f"{SFT} device=cuda", ["device=cuda", "device=cpu"]),
    ("unknown device", f"{SFT} device=gpu", ["device=gpu", "cuda"]),
    ("tracker without its package", f"{SFT} tracker=wandb", ["tracker=wandb", "pip install wandb"]),
    (
        "judge",
        f"{SFT} ppo.data.path=prompts.jsonl evaluate.judge=nowhere.judge",
        ["evaluate.judge=nowhere.judge", "no module nowhere"],
    ),
    ("GAE without a critic", f"{PPO} critic=none", ["critic=none", "advantage=rloo"]),
    ("RLOO with one sample", f"{PPO} advantage=rloo critic=none", ["rollout.samples_per_prompt=1", "2 or more"]),
    ("GRPO with one sample", f"{PPO} advantage=grpo critic=none", ["rollout.samples_per_prompt=1", "2 or more"]),
    ("Dr. GRPO with one sample", f"{PPO} advantage=dr_grpo critic=none", ["rollout.samples_per_prompt=1", "2 or more"]),
    ("GRPO with a critic", f"{PPO} advantage=grpo rollout.samples_per_prompt=2", ["GRPO", "critic=none"]),
    ("REINFORCE++ with a critic", f"{PPO} advantage=reinforce_pp", ["ReinforcePP", "critic=none"]),
    (
        "warm-up of no critic",
        f"{PPO} advantage=reinforce_pp critic=none ppo.critic_warmup=3",
        ["ppo.critic_warmup=3", "ReinforcePP", "use ppo.critic_warmup=0"],
    ),
    (
        "warm-up of a head on the actor's trunk",
        f"{PPO} critic=head ppo.critic_warmup=3",
        ["ppo.critic_warmup=3", "use critic.trunk_gradient=0"],
    ),
    ("k1 in the loss", f"{PPO} ppo.kl_in=loss ppo.kl_estimator=k1", ["ppo.kl_in=loss", "use ppo.kl_estimator=k3"]),
    ("target of no KL", f"{PPO} ppo.kl_target=6 ppo.kl_coef=0", ["ppo.kl_target", "ppo.kl_coef=0.05"]),
    (
        "correction of the engine's own ratio",
        f"{PPO} ppo.old_logp=engine ppo.importance_correction=token",
        ["ppo.importance_correction=token", "use ppo.old_logp=trainer"],
    ),
    (
        "unknown PEFT argument without a plus",
        f"{SFT} sft.peft.rr=1",
        ["sft.peft.rr=1", "LoraConfig has no such argument"],
    ),
    ("rank in words", f"{PPO} actor.peft.r=abc", ["actor.peft.r=abc", "use a whole number"]),
    ("share that is a list", f"{PPO} actor.peft.lora_dropout=[1]", ["actor.peft.lora_dropout=[1]", "use a number"]),
    ("lam", f"{PPO} advantage.lam=2", ["advantage.lam=2", "from 0 to 1"]),
    ("lam in words", f"{PPO} advantage.lam=abc", ["advantage.lam=abc", "from 0 to 1"]),
    (
        "upper clip",
        f"{PPO} policy_loss=clip_higher policy_loss.clip_high=0",
        ["policy_loss.clip_high=0", "a number above 0"],
    ),
    ("dual clip", f"{PPO} policy_loss=dual_clip policy_loss.dual_clip=1", ["policy_loss.dual_clip=1", "above 1"]),
    ("unknown argument of a loss", f"{PPO} +policy_loss.clip_hihg=1", ["policy_loss.clip_hihg", "Clip", "clip"]),
    ("a loss that is not there", f"{PPO} policy_loss._target_=mine.loss", ["policy_loss._target_=mine.loss", "mine"]),
    ("RLOO with a critic", f"{PPO} advantage=rloo rollout.samples_per_prompt=2", ["RLOO", "critic=none"]),
    (
        "batch of uneven groups",
        f"{PPO} ppo.batch_size=10 rollout.samples_per_prompt=4",
        ["ppo.batch_size=10", "rollout.samples_per_prompt=4", "use ppo.batch_size=8"],
    ),
    (
        "minibatches of uneven size",
        f"{PPO} ppo.batch_size=10 ppo.minibatches=4",
        ["ppo.minibatches=4", "ppo.batch_size=10", "use ppo.minibatches=5, or ppo.batch_size=8"],
    ),
    (
        "minibatches of uneven size, with groups",
        f"{PPO} advantage=rloo critic=none rollout.samples_per_prompt=4 ppo.batch_size=20 ppo.minibatches=3",
        ["ppo.minibatches=3", "use ppo.minibatches=4, or ppo.batch_size=24"],
    ),
    (
        "dynamic sampling of one sample",
        f"{PPO} ppo.dynamic_sampling=2",
        ["ppo.dynamic_sampling=2", "use rollout.samples_per_prompt=4, or ppo.dynamic_sampling=0"],
    ),
    ("more minibatches than rows", f"{PPO} ppo.batch_size=4 ppo.minibatches=8", ["ppo.minibatches=8", "4 or less"]),
    ("beyond the context", f"{PPO} ppo.max_prompt_tokens=300", ["300", "256 positions", "ppo.max_prompt_tokens=248"]),
    ("stage 1 of a frozen role", f"{PPO} zero@reference.zero=stage1", ["reference.zero", "stage3"]),
    ("ppo from nothing", "stages=ppo name=mine", ["actor.path", "actor.path=runs/mine/latest/sft", "model=FOLDER"]),
    ("no reward model", "stages=ppo actor.path={base}", ["reward.path", "reward.path=runs/run/latest/rm", "reward=fn"]),
    ("sft from nothing", "stages=sft", ["sft.path", "model=FOLDER"]),
    ("evaluation of nothing", "stages=evaluate", ["evaluate", "actor.path=runs/run/latest/ppo"]),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_data(tmp_path)
    yield from stand_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def tiny():
    """The composed tiny experiment."""
    return composed(TINY.split())[0]


@pytest.mark.parametrize("name, arguments, words", NAMES, ids=[name for name, *_ in NAMES])
def test_unknown_names_are_refused_with_what_is_nearest(here, capsys, name, arguments, words):
    refused(capsys, arguments, words)
    assert not (here / "runs").exists()


@pytest.mark.parametrize("arguments, words", VALUES, ids=[arguments for arguments, _ in VALUES])
def test_values_out_of_range_are_refused_with_what_is_in_range(tiny, arguments, words):
    cfg = copy.deepcopy(tiny)
    key, _, value = arguments.partition("=")
    OmegaConf.update(cfg, key, yaml.safe_load(value))
    with pytest.raises(AlignError) as error:
        plan_of(cfg)
    for word in words:
        assert word in str(error.value)


def test_the_tiny_experiment_is_within_all_ranges(tiny):
    assert [stage.name for stage in plan_of(tiny).stages] == ["pretrain", "sft", "rm", "ppo", "evaluate"]


@pytest.mark.parametrize("name, arguments, words", SETTINGS, ids=[name for name, *_ in SETTINGS])
def test_settings_that_cannot_work_are_refused_before_a_model_loads(here, capsys, base, name, arguments, words):
    refused(capsys, arguments.format(base=base), words)
    assert not (here / "runs").exists()


def test_a_setting_of_a_stage_that_does_not_run_is_warned_of(here, capsys, base):
    with pytest.warns(
        AlignWarning, match=r"rm\.batch_size=0: no stage of stages=\[sft\] reads rm, so it changes nothing"
    ):
        refused(capsys, f"{SFT} rm.batch_size=0 sft.data.path=nowhere.jsonl".format(base=base), ["nowhere.jsonl"])


def test_the_traceback_is_shown_on_demand(here, capsys, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    said = answer(capsys, "stages=[] ")
    assert said.status == 1 and "Traceback" in said.err and "align.errors.AlignError" in said.err


def test_a_latest_of_an_earlier_run_stays_where_it_was(here, capsys, base):
    (here / "runs" / "run" / "old").mkdir(parents=True)
    (here / "runs" / "run" / "latest").symlink_to("old")
    refused(capsys, f"{SFT} sft.data.path=empty.jsonl".format(base=base), ["empty.jsonl"])
    assert [p.name for p in sorted((here / "runs" / "run").iterdir())] == ["latest", "old"]
    assert (here / "runs" / "run" / "latest").resolve().name == "old"


def test_a_file_where_runs_should_lie_is_named(here, capsys, base):
    (here / "runs").write_text("")
    refused(capsys, SFT.format(base=base), ["runs is a file", "runs=FOLDER"])
    refused(capsys, f"{SFT} runs=demos.jsonl/deep".format(base=base), ["demos.jsonl is a file"])


def test_a_folder_that_cannot_be_written_is_named(here, capsys, base, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    refused(capsys, f"{SFT} runs=locked".format(base=base), ["runs=locked", "nothing can be written"])
    assert not (here / "locked").exists()


def test_a_latest_that_is_no_link_is_not_replaced(here, capsys, base):
    (here / "runs" / "run" / "latest").mkdir(parents=True)
    refused(capsys, SFT.format(base=base), ["latest", "no link", "name=NAME"])
