"""The stages `sft` and `best_of`: their settings and their specs."""

from __future__ import annotations

from align.config.choices import ADAPTERS, FOR_LORA
from align.config.fields import choice, number, open_settings, section
from align.config.values import Plug, Settings
from align.plan.plan import StagePlan
from align.plan.spec import JUDGED, POLICY, Made, Need, StageSpec


@section("sft")
class SFTOptions:
    path: str = "auto"
    """Model to start from, a folder or a hub name; auto: this run's pretrained model, else `model`."""
    adapter: str = choice("auto", *ADAPTERS)
    """An adapter found at `path`: continue it, start a new one on the merged model, or auto."""
    peft: Plug | None = None
    """Weights that train: peft@sft.peft=lora, or none for all."""
    data: Plug | None = None
    """Source of the demonstrations: data@sft.data=prompt_completion; sft.data.path=[a.jsonl,b.jsonl]: one adapter
    each, as `parallel_adapters` has it."""
    parallel_adapters: int | None = number(None, low=1, rare=True)
    """Adapters (LoRA, houlsby, pfeiffer, parallel) trained at once on one frozen base, a pass for the rows of all: each
    is that of a run with it alone, in sft/adapter_0, sft/adapter_1, …; the best on held-out rows is the stage's
    result. By itself, parallel_adapters=4 takes `seed` and the three after it; unset: as many as `learning_rate` or
    `data.path` list, else 1. With dropout each draws other masks than alone."""
    learning_rate: float | str | tuple[float | str, ...] = number(
        "lora:2e-4", above=0, high=1, prefix=FOR_LORA, listed=True
    )
    """Peak rate: 5 % warm-up, whose first step trains, then a cosine to 0. `lora:2e-4` is 2e-4 for LoRA and another
    method's own multiple of it, such as a tenth for all weights (align/peft/rates.py). [1e-4,3e-4]: one adapter each,
    side by side, with the same seed."""
    loraplus_lr_ratio: float | None = number(None, above=0, high=1000, rare=True)
    """LoRA+: LoRA's B learns so many times as fast as its A, whose rate wants to be lower then; the paper takes 16."""
    epochs: float = number(1.0, above=0)
    """Passes over the data."""
    batch_size: int = number(16, low=1)
    """Rows an optimizer step."""
    max_length: int = number(1024, low=2)
    """Tokens of prompt and completion; for longer rows see `too_long`."""
    too_long: str = choice("cut", "cut", "leave_out", rare=True)
    """Rows longer than `max_length`: cut, by which they lose their EOS, or left out. Either is counted."""
    early_stopping: int | None = number(None, low=1, rare=True)
    """Training ends when the held-out loss has not fallen for so many evaluations, one an epoch unless
    `args.eval_strategy` says otherwise; the best of them is the stage's result."""
    args: Settings = open_settings()
    """Any other argument of trl.SFTConfig."""


@section("best_of")
class BestOfOptions(SFTOptions):
    """As SFT, on the best completion of each prompt."""

    path: str = "auto"
    """Model to start from; auto: this run's newest policy, else `model`."""
    data: Plug | None = None
    """Source of the ranked completions: data@best_of.data=sampled."""


def needs(stage: StagePlan, before: tuple[Made, ...]) -> tuple[Need, ...]:
    return (Need("path", POLICY, f"{stage.spec.name}.path", stage.options.path),)


SFT = StageSpec(
    name="sft",
    help="supervised fine-tuning on prompts with completions, texts or dialogues",
    options=SFTOptions,
    build="align.stages.sft.stage.build",
    makes=POLICY,
    needs=needs,
    after=("pretrain",),
    merit="eval_loss",
    evaluated=JUDGED,
    policy_name="sft",
)
BEST_OF = StageSpec(
    name="best_of",
    help="supervised fine-tuning on the best completion of each prompt, as `preferences` ranked them",
    options=BestOfOptions,
    build="align.stages.sft.stage.build",
    makes=POLICY,
    needs=needs,
    after=("pretrain", "sft", "rm", "preferences"),
    merit="eval_loss",
    evaluated=JUDGED,
)
