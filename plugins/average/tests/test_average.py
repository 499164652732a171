"""The stage joins a run by its needs, averages two policies, and is found by all that looks for stages."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import align
from align.cli.compose import composed, plan_of
from align.cli.schema import stage_specs
from align.errors import AlignError
from align.plan.inputs import stage_in_run
from align.plan.spec import POLICY
from align.stages.pretrain.spec import PretrainOptions
from align.stages.pretrain.stage import train_tokenizer


def plan(*words: str):
    return plan_of(composed(list(words))[0])


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """The folders of two random models with one tokenizer."""
    home = tmp_path_factory.mktemp("policies")
    tokenizer = train_tokenizer(["a kite over the harbour"] * 9, PretrainOptions(vocab_size=270))
    for seed, name in enumerate(("tuned", "first")):
        torch.manual_seed(seed)
        shape = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        LlamaForCausalLM(shape).save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    return home


def weights(folder) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def test_the_average_is_that_of_the_weights(policies, tmp_path):
    words = [f"average.path={policies}/tuned", f"average.start={policies}/first", "average.share=0.25"]
    summary = align.run(["stages=[average]", *words, f"runs={tmp_path}"])
    made, tuned, first = (weights(f) for f in (f"{summary['run']}/average", policies / "tuned", policies / "first"))
    for name, weight in made.items():
        torch.testing.assert_close(weight, 0.25 * tuned[name] + 0.75 * first[name], rtol=0, atol=1e-7)
    card = json.loads((tmp_path / "run/latest/average/card.json").read_text())
    apart = sum(float((tuned[name] - first[name]).double().square().sum()) for name in tuned) ** 0.5
    assert card["distance"] == pytest.approx(apart, rel=1e-6) and card["share"] == 0.25


def test_it_joins_a_run_where_its_needs_put_it():
    found = plan("experiment=tiny", "stages=[pretrain,sft,rm,ppo,average]")
    assert [stage.name for stage in found.stages] == ["pretrain", "sft", "rm", "ppo", "average", "evaluate"]
    taken = {one.name: one.source for one in found.stage("average").inputs}
    assert taken == {"path": "ppo", "start": "sft"}
    evaluated = {one.name: one.source for one in found.stage("evaluate").inputs}
    policies = {"base": "pretrain", "sft": "sft", "ppo": "ppo", "average": "average"}
    assert evaluated == {**policies, "rm": "rm", "reference": "sft"}


def test_it_comes_behind_the_policies_that_are_typed_before_it():
    found = plan("experiment=tiny", "stages=[pretrain,ppo,average,sft,rm]")
    assert [stage.name for stage in found.stages] == ["pretrain", "sft", "rm", "ppo", "average", "evaluate"]


def test_later_stages_start_from_its_policy():
    found = plan("stages=[sft,dpo,average,ppo]", "model=base", "reward=fn", "reward.fn=json.loads")
    assert found.stage("ppo").input("actor").source == "average"


def test_its_settings_are_checked_like_all_others():
    with pytest.raises(AlignError, match=r"average\.share=1.5: use a number from 0 to 1"):
        plan("stages=[average]", "model=base", "average.share=1.5")
    with pytest.raises(Exception, match="shre"):
        plan("stages=[average]", "model=base", "average.shre=0.5")


def test_it_is_listed_with_all_other_choices(capsys):
    from align.cli.plugins import print_plugins

    print_plugins(["stage"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("stage=average "))
    assert "policy_average" in line and "the average of two policies' weights" in line


def test_an_export_of_a_run_takes_its_policy(tmp_path):
    for stage in ("sft", "ppo", "average"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "card.json").write_text("{}")
    assert stage_in_run(tmp_path, POLICY, stage_specs()) == tmp_path / "average"
