"""The stage `rm`: its settings and its spec."""

from __future__ import annotations

from align.config.choices import ADAPTERS, FOR_LORA, RM_LOSSES
from align.config.fields import choice, number, open_settings, section
from align.config.values import Plug, Settings
from align.plan.plan import StagePlan
from align.plan.spec import POLICY, REWARD_MODEL, Made, Need, StageSpec


@section("rm")
class RMOptions:
    path: str = "auto"
    """Model to start from; auto: this run's fine-tuned model, else its pretrained one, else `model`."""
    adapter: str = choice("auto", *ADAPTERS)
    """As `sft.adapter`."""
    peft: Plug | None = None
    """As `sft.peft`: peft@rm.peft=lora."""
    data: Plug | None = None
    """Source of pairs, rankings or ratings: data@rm.data=preferences."""
    loss: str = choice("auto", *RM_LOSSES)
    """pairs (of a ranking, every two completions that do not tie), plackett_luce (a whole ranking at once),
    squared_error (of ratings, shifted and scaled to mean 0 and deviation 1), ordinal (of ratings of a few levels, by
    their order alone); auto: squared_error for ratings, else pairs."""
    label_smoothing: float = number(0.0, low=0, high=0.5, rare=True)
    """Share of pairs taken to be the wrong way round, below one half."""
    learning_rate: float | str = number("lora:1e-4", above=0, high=1, prefix=FOR_LORA)
    """As `sft.learning_rate`."""
    loraplus_lr_ratio: float | None = number(None, above=0, high=1000, rare=True)
    """As `sft.loraplus_lr_ratio`."""
    epochs: float = number(1.0, above=0)
    """Passes over the pairs."""
    batch_size: int = number(16, low=1)
    """Pairs an optimizer step."""
    max_length: int = number(1024, low=2)
    """Tokens of prompt and completion; longer pairs are left out, and counted."""
    members: int = number(1, low=1, rare=True)
    """Reward models for reward=ensemble, alike but for their seeds, `seed` and those after it: adapter and head as they
    start, and the order of rows. One after the other, into rm/member_1, rm/member_2, …; the best on held-out pairs is
    the stage's result, too."""
    norm_samples: int = number(256, low=0, rare=True)
    """Samples of the starting policy on which the score's mean and deviation are measured."""
    judge: Plug | None = None
    """A reward in whose order these samples should score, too: +reward@rm.judge=fn rm.judge.fn=my_rules.true_score"""
    args: Settings = open_settings()
    """Any other argument of trl.RewardConfig."""


def needs(stage: StagePlan, before: tuple[Made, ...]) -> tuple[Need, ...]:
    return (Need("path", POLICY, "rm.path", stage.options.path),)


RM = StageSpec(
    name="rm",
    help="a reward model from preference pairs, rankings or ratings",
    options=RMOptions,
    build="align.stages.rm.stage.build",
    makes=REWARD_MODEL,
    needs=needs,
    reads=("rollout",),
    after=("pretrain", "sft"),
    merit="eval_accuracy",
    more_is_better=True,
)
