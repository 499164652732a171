"""`align export RUN --to DIR --merge`: the same policy in a plain model, or a clear refusal."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from methods import method
from sharing import train
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
)

from align.cli.export import export, rounded_away, untie
from align.cli.main import main
from align.cli.schema import stage_specs
from align.errors import AlignError
from align.plan.inputs import stage_in_run
from align.plan.spec import POLICY
from align.roles.alone import load_roles
from align.roles.folder import CAUSAL, inspect
from align.roles.loading import load_frozen

IDS = torch.arange(3, 43).view(2, 20)


@pytest.fixture
def trained(base_of, tmp_path):
    """trained(method) -> the folder of a policy that it has moved."""

    def make(name: str) -> str:
        torch.manual_seed(0)
        roles, *_ = load_roles(base_of(name), method(name), learning_rate=1e-2, steps=3, out=str(tmp_path / "made"))
        for _ in range(3):
            train(roles, who=("actor",))
        roles.save(tmp_path / "ppo")
        (tmp_path / "ppo" / "card.json").write_text("{}")
        return str(tmp_path / "ppo")

    return make


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("same", [True, False])
def test_ends_that_differ_after_merging_are_untied(base_of, same):
    """An adapter on the head and another on the embedding of a tied model move them apart."""
    model = AutoModelForCausalLM.from_pretrained(base_of("lora"), tie_word_embeddings=True)
    assert model.config.tie_word_embeddings
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if not same:
        state["lm_head.weight"] += 1
    untie(model, state)
    assert model.config.tie_word_embeddings == same


@pytest.mark.parametrize("name", ["lora", "dora", "qlora", "pissa", "ln_tuning", "trainable_tokens"])
def test_a_plain_model_is_the_policy(trained, name, tmp_path, capsys):
    folder = trained(name)
    main(["export", folder, "--to", str(tmp_path / "plain"), "--merge"])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert plain.dtype == torch.float32 and "merged into" in capsys.readouterr().out
    policy = load_frozen(inspect(folder, "path", CAUSAL))
    torch.testing.assert_close(logits(plain), logits(policy), rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").eos_token


def test_what_bfloat16_rounds_away_is_said_by_layer(trained, tmp_path, capsys):
    folder = trained("lora")
    export([folder, "--to", str(tmp_path / "plain"), "--merge", "--dtype", "bf16"])
    lost = json.loads((tmp_path / "plain" / "export.json").read_text())["rounded_away"]
    assert len(lost) == 14 and all(0.001 < share < 0.5 for share in lost.values())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "plain").dtype == torch.bfloat16
    out = capsys.readouterr().out
    assert "the 5 worst of 14" in out and f"{max(lost.values()):.2%}" in out


def test_the_share_by_hand():
    """In bfloat16 1 + 1/1024 is 1: all of that update is lost; 1 + 1/64 is kept; of both together a known part."""
    before = torch.ones(2)
    after = torch.tensor([1 + 1 / 1024, 1 + 1 / 64])
    assert rounded_away(before[:1], after[:1], after[:1].bfloat16()) == 1.0
    assert rounded_away(before[1:], after[1:], after[1:].bfloat16()) == 0.0
    expected = (1 / 1024) / (1 / 1024**2 + 1 / 64**2) ** 0.5
    assert rounded_away(before, after, after.bfloat16()) == pytest.approx(expected)
    assert rounded_away(before, before, before) is None


def test_a_folder_that_holds_no_policy_is_named_as_it_was_typed(tmp_path):
    with pytest.raises(AlignError, match=r"export .*run: there is no folder run in .*\n  nearest: runs"):
        (tmp_path / "runs").mkdir()
        export([str(tmp_path / "run"), "--to", "x"])
    with pytest.raises(AlignError, match=r"export .*runs: it holds no policy\n  use the folder of a run"):
        export([str(tmp_path / "runs"), "--to", "x"])


def test_a_runs_folder_gives_its_last_policy(trained, tmp_path):
    folder = trained("lora")
    shutil.copytree(folder, tmp_path / "run" / "sft")
    shutil.move(folder, tmp_path / "run" / "ppo")
    export([str(tmp_path / "run"), "--to", str(tmp_path / "plain"), "--merge"])
    assert json.loads((tmp_path / "plain" / "export.json").read_text())["from"] == str(tmp_path / "run" / "ppo")


@pytest.mark.parametrize(
    ("stages", "last"),
    [
        (["sft", "best_of"], "best_of"),
        (["sft", "rm", "preferences", "best_of", "dpo"], "dpo"),
        (["kto", "rm"], "kto"),
        (["dpo", "ppo", "evaluate"], "ppo"),
        (["pretrain", "rm"], "pretrain"),
    ],
)
def test_the_last_policy_is_that_of_any_stage_that_leaves_one(tmp_path, stages, last):
    for stage in stages:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "card.json").write_text("{}")
    assert stage_in_run(tmp_path, POLICY, stage_specs()) == tmp_path / last


def test_a_reward_model_keeps_its_score(reward_base, tmp_path):
    export([reward_base, "--to", str(tmp_path / "plain")])
    before, after = (
        AutoModelForSequenceClassification.from_pretrained(path) for path in (reward_base, tmp_path / "plain")
    )
    assert torch.equal(before.score.weight, after.score.weight)


def test_buffers_that_are_saved_are_kept_as_they_are(tmp_path):
    """A router's correction bias is no parameter."""
    config = Glm4MoeConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=32, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2,
        first_k_dense_replace=1,
    )  # fmt: skip
    model = Glm4MoeForCausalLM(config)
    name = next(name for name in model.state_dict() if name.endswith("e_score_correction_bias"))
    model.state_dict()[name].copy_(torch.arange(4.0))
    model.save_pretrained(tmp_path / "moe")
    export([str(tmp_path / "moe"), "--to", str(tmp_path / "plain"), "--dtype", "bfloat16"])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(again.state_dict()[name].float(), torch.arange(4.0)) and again.dtype == torch.bfloat16


def test_bad_words(trained, base, tmp_path):
    lora = trained("lora")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    new = str(tmp_path / "new")
    for words, message in [
        ([lora], r"required: --to\n  use align export FOLDER --to DIR --merge"),
        ([lora, "--to", new], r"is an adapter on .* as it is\n  use --merge"),
        ([lora, "--to", str(tmp_path / "full"), "--merge"], r"is there already\n  use --to with a new folder"),
        ([lora, "--to", new, "--merge", "--dtype", "int8"], r"invalid choice: 'int8'"),
        ([str(tmp_path / "nowhere"), "--to", new, "--merge"], r"there is no folder"),
    ]:
        with pytest.raises(AlignError, match=message):
            export(words)
    assert not (tmp_path / "new").exists()


def test_what_cannot_merge_is_refused(trained, tmp_path):
    with pytest.raises(AlignError, match=r"cannot be merged: .*\n  load it as it is: PeftModel.from_pretrained"):
        export([trained("houlsby"), "--to", str(tmp_path / "plain"), "--merge"])
