"""Models whose layers, classes or positions are other than a Llama's."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, OPTConfig

from align.peft.adapters import add_adapter, routed, use_adapter


@pytest.fixture
def opt():
    """OPT as its 350M model is: embeddings of another width, norms behind, layers that see tokens as rows."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=96, hidden_size=64, word_embed_proj_dim=32, ffn_dim=96, num_hidden_layers=2, num_attention_heads=2,
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
