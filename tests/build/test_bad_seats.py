"""Roles that cannot sit where they are asked to, and a precision that the CPU lacks: refused before a model loads."""

import json
import sys
from pathlib import Path

import pytest
from command_line import LEARNED, PPO, RM, SFT, refused, stand_in, write_data

import align.cli.main  # noqa: F401 - registers the search path
from align.build.checks import check_ppo
from align.build.runtime import Runtime
from align.cli.compose import composed, plan_of

SHARED = f"{LEARNED} reward=model reward.path={{reward}} reward.backbone=shared"
RM_TERM = "+reward@reward.terms.{0}=model reward.terms.{0}.path=apart reward.terms.{0}.backbone=shared"
SEATS = [
    ("whole reward model", SHARED, ["reward.backbone=shared", "a whole model", "use reward.backbone=own"]),
    (
        "reward model on another base",
        f"{SHARED} reward.path=apart",
        ["reward.backbone=shared", "it stands on {reward}, the actor on {base}", "use reward.backbone=own"],
    ),
    (
        "reward model of a sum on another base",
        f"{LEARNED} reward=sum {RM_TERM.format('rm')}",
        ["reward.terms.rm.backbone=shared", "the actor on {base}", "use reward.terms.rm.backbone=own"],
    ),
    (
        "one of an ensemble's reward models on another base",
        f"{LEARNED} reward=ensemble reward.path=[scorer,apart] reward.backbone=shared",
        ["reward.backbone=shared", "it stands on {reward}, the actor on {base}", "use reward.backbone=own"],
    ),
    (
        "reward model beside an actor that trains in full",
        f"{SHARED} reward.path=apart peft@actor.peft=none",
        ["reward.backbone=shared", "peft@actor.peft=none", "use reward.backbone=own"],
    ),
    (
        "reward model with ZeRO of its own",
        f"{SHARED} reward.path=apart zero@reward.zero=stage3",
        ["reward.backbone=shared", "zero@reward.zero", "use reward.backbone=own"],
    ),
    (
        "reward model that this run trains in full",
        "experiment=tiny peft@rm.peft=none reward.backbone=shared",
        ["reward.backbone=shared", "peft@rm.peft=none", "use reward.backbone=own"],
    ),
    (
        "reward model that this run makes by another method",
        "experiment=tiny peft@rm.peft=ia3 reward.backbone=shared",
        ["reward.backbone=shared", "PEFT takes one method a model", "IA3", "use reward.backbone=own"],
    ),
    (
        "critic that starts from a reward model in full",
        "experiment=tiny peft@rm.peft=none critic=adapter",
        ["critic=adapter", "starts from the reward model", "peft@rm.peft=none", "use critic=own"],
    ),
    (
        "critic of another method than the actor that this run makes",
        "experiment=tiny critic=adapter peft@critic.peft=ia3",
        ["critic=adapter", "PEFT takes one method a model", "LORA", "use critic=own"],
    ),
    (
        "critic on another base",
        f"{PPO} critic=adapter critic.path={{reward}}",
        ["critic=adapter", "on {reward}", "own"],
    ),
    (
        "critic in full",
        f"{PPO} critic=adapter peft@critic.peft=none",
        ["critic=adapter", "peft@critic.peft=none", "own"],
    ),
    (
        "critic beside an actor that trains in full",
        f"{PPO} critic=adapter peft@actor.peft=none",
        ["critic=adapter", "peft@actor.peft=none", "use critic=own"],
    ),
    (
        "critic whose adapter is merged",
        f"{PPO} critic=adapter critic.path=tuned critic.adapter=new",
        ["critic=adapter", "merged", "use critic=own"],
    ),
    (
        "critic beside an actor whose adapter is merged",
        f"{PPO} critic=adapter actor.path=tuned actor.adapter=new critic.path={{base}}",
        ["critic=adapter", "still to be merged (actor.adapter=new)", "use critic=own"],
    ),
    (
        "critic of another method",
        f"{PPO} critic=adapter peft@critic.peft=ia3",
        ["critic=adapter", "PEFT takes one method a model", "LORA", "use critic=own"],
    ),
    (
        "head on a trunk that does not train",
        f"{PPO} critic=head actor.peft.target_modules=[lm_head]",
        ["critic=head", "nothing in its trunk", "use critic.trunk_gradient=0"],
    ),
]
FITTING = [
    f"{PPO} critic=adapter",
    f"{PPO} critic=adapter actor.path=tuned",
    f"{PPO} critic=head actor.peft.target_modules=[lm_head] critic.trunk_gradient=0",
    f"{PPO} critic=head +actor.peft.modules_to_save=[embed_tokens] actor.peft.target_modules=[lm_head]",
    f"{PPO} critic=head actor.peft.target_modules=.*q_proj|.*lm_head",
    f"{SHARED} reward.path=scorer",
    f"{SHARED} reward.path=scorer actor.path=tuned",
    f"{LEARNED} reward=ensemble reward.path=[scorer,twin] reward.backbone=shared",
    f"{LEARNED} reward=sum {RM_TERM.format('one')} {RM_TERM.format('two')}".replace("apart", "scorer"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, base, reward_base):
    """A policy's adapter on the base, reward models' adapters on this base and on another."""
    home = tmp_path_factory.mktemp("seats")
    write_data(home)
    adapter(home / "tuned", base, "CAUSAL_LM")
    adapter(home / "apart", reward_base, "SEQ_CLS")
    adapter(home / "scorer", base, "SEQ_CLS")
    adapter(home / "twin", base, "SEQ_CLS")
    return home


def adapter(folder: Path, base: str, task: str) -> None:
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": task, "base_model_name_or_path": base, "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture
def here(folders, monkeypatch):
    yield from stand_in(folders, monkeypatch)


@pytest.mark.parametrize("name, arguments, words", SEATS, ids=[name for name, *_ in SEATS])
def test_a_seat_that_cannot_be_is_refused_before_a_model_loads(here, capsys, base, reward_base, name, arguments, words):
    models = {"base": base, "reward": reward_base}
    said = refused(capsys, arguments.format(**models), [word.format(**models) for word in words])
    assert said.out == ""
    assert not (here / "runs").exists()


@pytest.mark.parametrize("arguments", FITTING)
def test_seats_that_can_be_are_not_refused(here, base, reward_base, arguments):
    plan = plan_of(composed(arguments.format(base=base, reward=reward_base).split())[0])
    sys.path.insert(0, str(here))
    stage = plan.stage("ppo")
    check_ppo(stage, plan, Runtime(plan).device, stage.known())


@pytest.mark.parametrize("arguments", [PPO, SFT, RM], ids=["ppo", "sft", "rm"])
def test_bf16_is_refused_where_the_cpu_has_no_instructions_for_it(here, capsys, base, monkeypatch, arguments):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(f"torch.cpu.{name}", lambda: False)
    refused(
        capsys, f"{arguments} precision=bf16 device=cpu".format(base=base), ["precision=bf16", "use precision=fp32"]
    )
    assert not (here / "runs").exists()
