"""Models whose layers, classes or positions are other than a Llama's."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sharing import lora
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, MixtralConfig, OPTConfig, PreTrainedConfig

from align.peft.adapters import add_adapter, routed, use_adapter
from align.peft.folder import save_model
from align.peft.merging import merged_tensors
from align.report.model_card import write_model_card
from align.roles.alone import load_policy, load_roles
from align.roles.folder import CAUSAL, SCORE, inspect
from align.roles.loading import load_frozen, load_plain
from align.roles.modules import ScoreModule
from align.roles.start import start
from align.rollout.hf import HFRollout
from align.types import Sampling

WITHOUT_A_SCORE = ("granite", "cohere2", "codegen")
"""Architectures of which transformers (5.19) has no class for sequence classification."""


def config_of(name: str) -> PreTrainedConfig:
    return AutoConfig.for_model(
        name, vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, rotary_dim=8, pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip


def saved(config: PreTrainedConfig, tokenizer, folder) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def opt():
    """OPT as its 350M model is: embeddings of another width, norms behind, layers that see tokens as rows."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=512, hidden_size=64, word_embed_proj_dim=32, ffn_dim=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, do_layer_norm_before=False, init_std=0.1,
    )  # fmt: skip
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    add_adapter(model, "other", model.peft_config["default"])
    return model.eval()


def test_rows_go_through_their_adapters_where_layers_see_tokens_as_rows(opt):
    ids_BN = torch.arange(30).view(3, 10)
    names = ["other", None, "default"]
    with routed(opt, names), torch.no_grad():
        together = opt(ids_BN).logits
    for row, name in enumerate(names):
        with use_adapter(opt, name), torch.no_grad():
            torch.testing.assert_close(together[row], opt(ids_BN[row : row + 1]).logits[0], atol=1e-5, rtol=1e-5)
    assert not any(module._forward_pre_hooks for module in opt.modules())


@pytest.mark.parametrize("method", [None, lora()], ids=["whole", "lora"])
@pytest.mark.parametrize("name", WITHOUT_A_SCORE)
def test_a_reward_model_stands_on_an_architecture_without_a_class_for_it(name, method, tokenizer, tmp_path):
    base, out = saved(config_of(name), tokenizer, tmp_path / "base"), tmp_path / "rm"
    begun = start(base, key="rm", head=SCORE, peft=method, adapter="auto", out=out, dtype=torch.float32)
    trained = begun.model
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    save_model(trained, out)
    tokenizer.save_pretrained(out)
    loaded = load_frozen(inspect(out, "reward.path", SCORE))
    ids_BN, mask_BN = torch.arange(1, 25).view(2, 12), torch.ones(2, 12, dtype=torch.bool)
    ids_BN[1, 7:], mask_BN[1, 7:] = 0, False
    with torch.no_grad():
        score_B = ScoreModule(loaded)(ids_BN, mask_BN)
        body = load_plain(base, CAUSAL, torch.float32).base_model if method is None else None
        by_transformers_B = loaded(input_ids=ids_BN, attention_mask=mask_BN.long()).logits[:, 0]
        shorter_1 = ScoreModule(trained)(ids_BN[1:, :7], mask_BN[1:, :7])
    torch.testing.assert_close(score_B, by_transformers_B, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score_B[1:], shorter_1, atol=1e-5, rtol=1e-5)
    if body is not None:  # the score is of the language model's body, by name and shape
        assert loaded.base_model.state_dict().keys() == body.state_dict().keys()
    write_model_card(out, {"stage": "rm", "versions": {"align": "0"}})
    scope: dict = {}
    exec((out / "README.md").read_text().partition("```python\n")[2].partition("```")[0], scope)
    with torch.no_grad():
        card_B = scope["model"].eval()(input_ids=ids_BN, attention_mask=mask_BN.long()).logits[:, 0]
    torch.testing.assert_close(card_B, score_B, atol=1e-5, rtol=1e-5)


def test_a_critic_reads_the_last_layer_where_embeddings_are_narrower(opt, tokenizer, tmp_path):
    folder = saved(opt.get_base_model().config, tokenizer, tmp_path / "opt")
    roles, *_ = load_roles(folder, lora(), critic="adapter", out=str(tmp_path / "out"))
    assert roles.groups[0].backbone.value_head.in_features == 32


def test_a_policy_writes_after_trl_has_turned_on_its_experts_loss(tokenizer, tmp_path):
    """TRL (1.16) leaves output_router_logits in the config; the loss of experts cannot be had on a cache."""
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, output_router_logits=True,
    )  # fmt: skip
    policy = load_policy(saved(config, tokenizer, tmp_path / "moe"), "sft.path", torch.device("cpu"))
    engine = HFRollout(tokenizer.pad_token_id)
    engine.attach(policy)
    written = engine.generate([[5, 6, 7], [8, 9]], [0, 1], Sampling(1.0, 4, (1,)))
    assert written.response_ids_BT.shape[0] == 2


def test_both_weights_of_experts_are_merged(tokenizer, tmp_path):
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    plain = load_plain(saved(config, tokenizer, tmp_path), CAUSAL, torch.float32)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    model = get_peft_model(plain, lora(init_lora_weights=False))
    found = {name: tensor.clone() for name, tensor in merged_tensors(model)}
    experts = [name for name in found if ".experts." in name]
    assert len(experts) == 2 and all((found[name] - before[name]).abs().max() > 1e-3 for name in experts)
    left = {name: tensor.clone() for name, tensor in merged_tensors(model)}
    merged = model.merge_and_unload().state_dict()
    assert found.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)
        assert torch.equal(found[name], left[name])


def test_capped_attention_is_the_models_own(tokenizer, tmp_path):
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, attn_logit_softcapping=0.5, query_pre_attn_scalar=1, initializer_range=0.5,
    )  # fmt: skip
    folder, ids_BN = saved(config, tokenizer, tmp_path), torch.arange(12)[None]
    by = {
        kernel: AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kernel).eval()
        for kernel in ("eager", "sdpa")
    }
    with torch.no_grad():
        ours = load_plain(folder, CAUSAL, torch.float32)(ids_BN).logits
        logits = {kernel: model(ids_BN).logits for kernel, model in by.items()}
    assert torch.equal(ours, logits["eager"]) and (ours - logits["sdpa"]).abs().max() > 1e-2
