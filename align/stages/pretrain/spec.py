"""The stage `pretrain`: its settings and its spec."""

from __future__ import annotations

from align.config.fields import number, section
from align.config.values import Plug
from align.errors import AlignError
from align.plan.spec import POLICY, StageSpec


@section("pretrain")
class PretrainOptions:
    data: Plug | None = None
    """Source of the corpus: data@pretrain.data=text."""
    steps: int = number(300, low=1)
    """Optimizer steps."""
    batch_size: int = number(16, low=1)
    """Rows of `max_length` tokens a step."""
    max_length: int = number(96, low=2)
    """Tokens of a row."""
    learning_rate: float = number(3e-3, above=0, high=1)
    """Peak of AdamW's rate: 5 % warm-up, then a cosine to 0."""
    weight_decay: float = number(0.05, low=0, rare=True)
    """AdamW's, on all weights."""
    vocab_size: int = number(768, low=260)
    """Tokens of the byte-level BPE, special ones included."""
    hidden_size: int = number(128, low=1)
    """Width of the model."""
    layers: int = number(3, low=1)
    """Number of decoder layers."""
    heads: int = number(4, low=1)
    """hidden_size / heads is the head size: vLLM on CPU serves 32, 64, 80, 96, 112, 128 …"""
    intermediate_size: int = number(384, low=1, rare=True)
    """Width of the feed-forward part."""
    max_positions: int = number(512, low=2, rare=True)
    """Longest sequence that the model takes, in tokens."""

    def check_together(self) -> None:
        """Raise AlignError where heads do not divide the width evenly, and where a row is longer than positions."""
        hidden, heads = self.hidden_size, self.heads
        if hidden % heads or (hidden // heads) % 2:
            fitting = [n for n in range(1, hidden // 2 + 1) if hidden % n == 0 and (hidden // n) % 2 == 0]
            near = min(fitting, key=lambda n: (abs(n - heads), -n), default=None)
            instead = f"pretrain.heads={near}" if near else "an even pretrain.hidden_size"
            raise AlignError(
                f"pretrain.heads={heads} does not divide pretrain.hidden_size={hidden} into heads of an even size\n"
                f"  use {instead}"
            )
        if self.max_length > self.max_positions:
            raise AlignError(
                f"pretrain.max_length={self.max_length} is more than pretrain.max_positions={self.max_positions}\n"
                f"  use pretrain.max_positions={self.max_length} or more"
            )


def shape(options: PretrainOptions) -> dict[str, int]:
    return {
        "hidden_size": options.hidden_size, "num_attention_heads": options.heads,
        "max_position_embeddings": options.max_positions,
    }  # fmt: skip


PRETRAIN = StageSpec(
    name="pretrain",
    help="a byte-level tokenizer and a small Llama, made from a corpus",
    options=PretrainOptions,
    build="align.stages.pretrain.stage.build",
    makes=POLICY,
    merit="eval_loss",
    policy_name="base",
    shape=shape,
)
