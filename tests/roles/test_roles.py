"""Roles: scores that padding cannot move, starts that go on exactly, heads that survive their folder."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GraniteConfig, GraniteForCausalLM

from align.engine.plain import PlainEngine
from align.errors import AlignError
from align.peft.adapters import add_frozen_copy, use_adapter
from align.roles.alone import load_roles
from align.roles.backbone import Backbone
from align.roles.critic import save_critic, saved_score, take_score, value_head
from align.roles.modules import ScoreModule, to_left
from align.roles.placement import Placement, RunContext
from align.roles.specs import Actor, Critic
from align.roles.start import start
from align.rollout.hf import pad_left

FP32 = torch.float32


@pytest.fixture
def context(tmp_path):
    return RunContext(torch.device("cpu"), FP32, lambda m, lr, norm, zero: PlainEngine(m, lr, norm), tmp_path / "out")


@pytest.fixture
def lora():
    return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")


@pytest.fixture(scope="module")
def sft(lora_model, base, tmp_path_factory):
    """The folder of a trained adapter on `base`."""
    folder = tmp_path_factory.mktemp("sft")
    model = lora_model(seed=3)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rm(reward_base, tmp_path_factory):
    """The folder of a reward model with an adapter, a trained head and a card."""
    folder = tmp_path_factory.mktemp("rm")
    plain = AutoModelForSequenceClassification.from_pretrained(reward_base, num_labels=1, dtype=FP32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
    model = get_peft_model(plain, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    (folder / "card.json").write_text(json.dumps({"score": {"mean": 0.5, "std": 2.0}}))
    return str(folder)


def test_rows_move_to_the_left_and_keep_their_order():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
    ids, moved = to_left(torch.arange(20).view(4, 5), mask)
    assert [row[real].tolist() for row, real in zip(ids, moved, strict=True)] == [
        [2, 3, 4], [5, 6, 7, 8], [11, 13], []
    ]  # fmt: skip
    assert moved.tolist() == [[True] * 3 + [False], [True] * 4, [True, True, False, False], [False] * 4]


def test_left_padding_moves_no_logp_value_or_score(base, reward_base):
    """fp32; 1e-5: the sums of masked attention run over more columns."""
    policy = Backbone(AutoModelForCausalLM.from_pretrained(base, dtype=FP32).eval())
    trunk = AutoModelForSequenceClassification.from_pretrained(reward_base, dtype=FP32).eval()
    score = ScoreModule(trunk)
    row, answer = [5, 9, 40, 77], [300, 301, 12]
    ids, mask = torch.tensor([row + answer]), torch.ones(1, 7, dtype=torch.bool)
    wide = torch.nn.functional.pad(ids, (6, 0), value=1)
    wide_mask = torch.nn.functional.pad(mask, (6, 0), value=False)
    values = Backbone(trunk, adapters={"critic": None})
    values.value_head = torch.nn.Linear(64, 1)
    with torch.no_grad():
        for module, role, name in ((policy, "actor", "logp_BT"), (values, "critic", "value_BT")):
            one, other = (module(*rows, 3, 1.0, (role,))[name] for rows in ((ids, mask), (wide, wide_mask)))
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        torch.testing.assert_close(score(ids, mask), score(wide, wide_mask), rtol=0, atol=1e-5)


def test_logp_and_value_belong_to_the_token_before_which_they_are_read(base):
    """Against a slow loop: the logits at the last token of each prefix."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=FP32).eval()
    ids = torch.tensor([[5, 9, 40, 77, 300, 301]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        logp = Backbone(model)(ids, mask, 3, 1.0, ("actor",))["logp_BT"]
        slow = [model(ids[:, :t]).logits[0, -1].log_softmax(-1)[ids[0, t]] for t in range(3, 6)]
    torch.testing.assert_close(logp[0], torch.stack(slow), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 4.0], ids=["plain", "scaled"])
def test_rows_of_uneven_prompts_have_the_logps_of_rows_alone(scale):
    """Granite divides its logits after the head, so that they are asked for, from the first response's column on."""
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=scale, initializer_range=0.3,
    )  # fmt: skip
    model = GraniteForCausalLM(config).eval()
    backbone = Backbone(model)
    assert backbone.plain_head == (scale == 1.0)
    ids = torch.arange(4, 40).view(3, 12)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, :5] = mask[1, :2] = mask[1, 10:] = mask[2, :7] = mask[2, 8:] = False  # 8 prompt columns, 4 of response
    with torch.no_grad():
        logp = backbone(ids, mask, 4, 1.0, ("actor",))["logp_BT"]
        for row in range(3):
            real = ids[row][mask[row]][None]
            alone = model(real).logits[0, :-1].log_softmax(-1).gather(1, real[0, 1:, None]).squeeze(1)
            count = int(mask[row, 8:].sum())
            torch.testing.assert_close(logp[row, :count], alone[len(alone) - count :], rtol=0, atol=1e-5)
            assert not logp[row, count:].any()


def test_the_score_is_read_at_the_last_real_token(reward_base):
    model = AutoModelForSequenceClassification.from_pretrained(reward_base, dtype=FP32).eval()
    ids, mask = torch.tensor([[5, 9, 40, 1, 1]]), torch.tensor([[True, True, True, False, False]])
    with torch.no_grad():
        hidden = model.model(ids[:, :3]).last_hidden_state[:, -1]
        torch.testing.assert_close(ScoreModule(model)(ids, mask), model.score(hidden)[:, 0], rtol=0, atol=1e-5)


def test_pad_equal_to_eos_is_scored_at_eos(reward_base, tokenizer):
    """The reward sees EOS whatever the pad is: the mask decides."""
    model = AutoModelForSequenceClassification.from_pretrained(reward_base, dtype=FP32).eval()
    eos = tokenizer.eos_token_id
    ids = torch.tensor([[5, 9, eos, eos, eos]])
    mask = torch.tensor([[True, True, True, False, False]])
    with torch.no_grad():
        short = ScoreModule(model)(ids[:, :3], mask[:, :3])
        torch.testing.assert_close(ScoreModule(model)(ids, mask), short, rtol=0, atol=1e-5)


def test_an_adapter_of_the_same_settings_goes_on(sft, lora, tmp_path):
    begun = start(sft, key="actor", head="causal", peft=lora, adapter="auto", out=tmp_path, dtype=FP32)
    there = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(begun.base, dtype=FP32), sft)
    ids = torch.tensor([[5, 9, 40, 77]])
    with torch.no_grad():
        torch.testing.assert_close(begun.model(ids).logits, there(ids).logits, rtol=0, atol=0)
    assert "goes on" in begun.description and not begun.fresh


def test_another_rank_starts_anew_on_the_merged_model(sft, tmp_path):
    other = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear")
    begun = start(sft, key="actor", head="causal", peft=other, adapter="auto", out=tmp_path, dtype=FP32)
    base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(_base_of(sft), dtype=FP32), sft)
    ids = torch.tensor([[5, 9, 40, 77]])
    with torch.no_grad():
        torch.testing.assert_close(begun.model(ids).logits, base(ids).logits, rtol=0, atol=2e-4)
    assert begun.base == str((tmp_path / "base").resolve()) and begun.fresh
    assert "r is 8 there, 4 in the settings" in begun.description


def test_continue_refuses_another_rank_with_both_values(sft, tmp_path):
    other = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear")
    with pytest.raises(AlignError, match="r is 8 there, 4 in the settings"):
        start(sft, key="actor", head="causal", peft=other, adapter="continue", out=tmp_path, dtype=FP32)


def test_an_sft_adapter_goes_on_under_a_score_head(sft, lora, tmp_path):
    """The trunk computes what the policy's trunk computes; the head is new and trains."""
    begun = start(sft, key="rm", head="score", peft=lora, adapter="auto", out=tmp_path, dtype=FP32)
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(begun.base, dtype=FP32), sft)
    ids = torch.tensor([[5, 9, 40, 77]])
    with torch.no_grad():
        one = begun.model.get_base_model().model(ids).last_hidden_state
        other = policy.get_base_model().model(ids).last_hidden_state
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert any("score" in n and p.requires_grad for n, p in begun.model.named_parameters())


def test_the_value_head_is_the_reward_head_in_units_of_its_deviation(rm, lora, tmp_path):
    begun = start(rm, key="critic", head="score", peft=lora, adapter="auto", out=tmp_path, dtype=FP32)
    reward = ScoreModule(begun.model.eval())
    ids, mask = torch.tensor([[5, 9, 40, 77]]), torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        score = reward(ids, mask)
        critic = Backbone(begun.model, adapters={"critic": "default"})
        torch.testing.assert_close(saved_score(rm), begun.model.score.modules_to_save["default"].weight)
        critic.value_head, _ = value_head(take_score(begun.model), rm, 64)
        value = critic(torch.cat([ids, ids[:, :1]], 1), torch.ones(1, 5, dtype=torch.bool), 1, 1.0, ("critic",))[
            "value_BT"
        ]
    torch.testing.assert_close(value[:, 0], (score - 0.5) / 2.0, rtol=0, atol=1e-5)


def critic_of(base, path, peft, context, backbone="own"):
    """The group of a critic that starts from `path`, beside an actor on `base`."""
    placement = Placement(
        context, Actor(base, "auto", 1e-3, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), None)
    )
    Critic(path, "auto", 1e-3, peft, None, backbone).place(placement)
    return placement.roles(micro_batch_size=4).group("critic")


def value_of(group):
    ids, mask = torch.tensor([[5, 9, 40, 77, 3]]), torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad(), group.backbone.serving(("critic",), 1):
        return group.engine.forward(ids, mask, 2, 1.0, ("critic",))["value_BT"]


def test_a_critic_saves_and_loads_its_head_and_adapter(base, rm, lora, context, tmp_path):
    critic = critic_of(base, rm, lora, context)
    with torch.no_grad():
        critic.backbone.value_head.bias.add_(0.25)
    save_critic(critic.backbone, tmp_path / "critic")
    assert set(load_file(tmp_path / "critic" / "value_head.safetensors")) == {"weight", "bias"}
    again = critic_of(base, str(tmp_path / "critic"), lora, context)
    torch.testing.assert_close(value_of(again), value_of(critic), rtol=0, atol=1e-6)


@pytest.mark.parametrize("trained", ["lora", "full"])
@pytest.mark.parametrize("then", ["lora", "rank 4", "full"])
def test_a_critics_folder_goes_on_under_any_method(base, rm, lora, context, tmp_path, trained, then):
    """Another method starts on the merged trunk: fp32, 1e-4 for the merge; the value head is the critic's own."""
    methods = {"lora": lora, "full": None, "rank 4": LoraConfig(r=4, target_modules="all-linear")}
    critic = critic_of(base, rm, methods[trained], context)
    with torch.no_grad():
        critic.backbone.value_head.bias.add_(0.25)
    save_critic(critic.backbone, tmp_path / "critic")
    again = critic_of(base, str(tmp_path / "critic"), methods[then], context)
    torch.testing.assert_close(value_of(again), value_of(critic), rtol=0, atol=1e-4)


def test_modules_that_train_in_full_are_kept(base, tmp_path):
    whole = LoraConfig(r=8, target_modules=["q_proj"], modules_to_save=["lm_head"])
    begun = start(base, key="sft", head="causal", peft=whole, adapter="auto", out=tmp_path, dtype=FP32)
    assert any("lm_head" in n and p.requires_grad for n, p in begun.model.named_parameters())
    begun.model.save_pretrained(tmp_path / "sft")
    plain = LoraConfig(r=8, target_modules=["q_proj"])
    with pytest.raises(AlignError, match=r"modules_to_save is \['lm_head'\] there, \[\] in the settings"):
        start(
            str(tmp_path / "sft"), key="actor", head="causal", peft=plain, adapter="continue", out=tmp_path, dtype=FP32
        )


def test_a_frozen_copy_computes_the_same_and_changes_no_requires_grad(lora_model):
    model = lora_model(seed=1)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    add_frozen_copy(model, "ref")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trains
    ids = torch.tensor([[5, 9, 40, 77]])
    with torch.no_grad():
        policy = model(ids).logits
        with use_adapter(model, "ref"):
            reference = model(ids).logits
        with use_adapter(model, None):
            plain = model(ids).logits
        torch.testing.assert_close(model(ids).logits, policy, rtol=0, atol=0)
    torch.testing.assert_close(reference, policy, rtol=0, atol=0)
    assert (plain - policy).abs().max() > 0.1
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trains


def test_use_adapter_is_undone_by_an_exception(lora_model):
    model = lora_model(seed=1)
    ids = torch.tensor([[5, 9]])
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(RuntimeError, match="on purpose"), use_adapter(model, None):
            raise RuntimeError("on purpose")
        torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)


def test_prompts_are_padded_on_the_left():
    ids, mask = pad_left([[7], [8, 9]], 1)
    assert ids.tolist() == [[1, 7], [8, 9]] and mask.tolist() == [[False, True], [True, True]]


def _base_of(folder: str) -> str:
    with open(f"{folder}/adapter_config.json") as file:
        return json.load(file)["base_model_name_or_path"]


def test_roles_leave_a_temporary_folder_only_where_they_made_a_base(base, sft, lora, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load_roles(base, lora)
    with pytest.raises(AlignError):
        load_roles(str(tmp_path / "nowhere"), lora)
    assert not list(tmp_path.iterdir())
    roles, *_ = load_roles(sft, LoraConfig(r=4, target_modules="all-linear"))
    merged = roles.actor.model.peft_config["default"].base_model_name_or_path
    assert [str(folder / "base") for folder in tmp_path.iterdir()] == [merged]
