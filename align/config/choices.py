"""Words that an option takes, each list once, without torch."""

PRECISIONS = ("auto", "fp32", "bf16")
LINEARS = ("auto", "torch", "onednn")
ADAPTERS = ("auto", "continue", "new")
SCHEDULES = ("constant", "linear", "cosine")
CRITIC_BACKBONES = ("auto", "own", "adapter", "head")
RM_LOSSES = ("auto", "pairs", "plackett_luce", "squared_error", "ordinal")
DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
KTO_LOSSES = ("kto", "apo_zero_unpaired")
SFT_LOSSES = ("nll", "dft")
"""Of TRL (1.16), whose trainers look at them when the model is there."""
METRICS = ("exact_match", "f1", "accuracy", "format")
REWARD_BACKBONES = ("auto", "shared", "own")
FOR_LORA = "lora:"
"""Before a learning rate that is LoRA's, and from which another method's follows."""
MEASURED = "measured"
"""Origin in card.json of a `cpu_linear` that was `auto` and was measured."""
