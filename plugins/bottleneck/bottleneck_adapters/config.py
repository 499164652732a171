"""Settings of bottleneck adapters."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig
from transformers.activations import ACT2FN

from bottleneck_adapters.registration import kind

PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


@dataclass
class BottleneckConfig(PeftConfig):
    """Adapters h + scaling · up(dropout(act(down(h)))), small layers between those of a frozen model.

    `placement`: "houlsby" after attention and after the feed-forward, before their residuals are added
    (arXiv 1902.00751); "pfeiffer" after the feed-forward alone (arXiv 2005.00052); "parallel" beside the
    feed-forward, from its input to its output (arXiv 2110.04366). At start the model is what it was.

    Raises ValueError for values that make no adapter.
    """

    placement: str = field(default="pfeiffer", metadata={"help": "houlsby, pfeiffer or parallel"})
    reduction_factor: float = field(default=16.0, metadata={"help": "hidden size over bottleneck size"})
    bottleneck_size: int | None = field(default=None, metadata={"help": "the bottleneck's size itself, if given"})
    non_linearity: str = field(default="relu", metadata={"help": "a name that transformers knows: relu, gelu, silu …"})
    scaling: float = field(default=1.0, metadata={"help": "factor of what the adapter adds"})
    dropout: float = field(default=0.0, metadata={"help": "share of the bottleneck dropped in training"})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "the modules that adapters follow (or stand beside), where the model is of an unknown kind"},
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "modules left alone"})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "numbers of the layers, from 0"}
    )
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the list of layers"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained and saved as a whole"})
    init_weights: bool = field(default=True, metadata={"help": "identity at start; False: random, for tests"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = kind()
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement={self.placement!r}: one of {', '.join(PLACEMENTS)}")
        if self.non_linearity not in ACT2FN:
            raise ValueError(f"non_linearity={self.non_linearity!r}: one of {', '.join(sorted(ACT2FN))}")
        if self.bottleneck_size is not None and self.bottleneck_size < 1:
            raise ValueError(f"bottleneck_size={self.bottleneck_size}: at least 1")
        if self.reduction_factor <= 0:
            raise ValueError(f"reduction_factor={self.reduction_factor}: above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: from 0 up to, but not, 1")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)

    @property
    def mixed_batches(self) -> bool:
        """Rows of one batch can go through different adapters, with gradients."""
        return True

    @property
    def parallel(self) -> bool:
        return self.placement == "parallel"

    def size(self, hidden: int) -> int:
        """Width of the bottleneck in a model of width `hidden`."""
        return self.bottleneck_size or max(1, round(hidden / self.reduction_factor))

    @property
    def times_lora(self) -> float:
        """The learning rate that it wants, in LoRA's: by held-out loss on a model of 738 thousand parameters."""
        return 1.0 if self.parallel else 3.0

    @property
    def times_lora_in_ppo(self) -> float:
        """The same in PPO: at 3, one adapter a layer strays far from the reference."""
        return 3.0 if self.placement == "houlsby" else 1.0
