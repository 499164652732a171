"""The stage `evaluate`: its settings and its spec."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from align.config.choices import METRICS
from align.config.fields import choice, number, section, value
from align.config.values import Plug
from align.plan.inputs import is_sampled
from align.plan.plan import StagePlan
from align.plan.rewards import named_models
from align.plan.spec import AUTO, FIGURES, POLICY, REWARD_MODEL, SAMPLES, Made, Need, StageSpec


@section("evaluate")
class EvaluateOptions:
    samples: int = number(256, low=1)
    """Completions scored, a policy."""
    judge: str | None = None
    """module.function(prompt, completion, finished) -> {"score": …}: a rule that knows the true score."""
    split: str = choice("test", "test", "eval", rare=True)
    """Held-out rows that decide: test, or eval while settings are chosen (files have one held-out part)."""
    batch_size: int = number(128, low=1, rare=True)
    """Completions generated at a time."""
    show: int = number(3, low=0)
    """Prompts printed with the completions before and after."""
    shots: int | tuple[int, ...] = number((), low=0, listed=True, rare=True)
    """[0,4]: the model that fine-tuning started from completes sft.data's held-out prompts after so many examples, the
    trained ones after none."""
    metrics: str | tuple[str, ...] = choice(("exact_match", "f1"), *METRICS, listed=True, rare=True)
    """Of these completions: exact_match (letter for letter), f1 (of words, SQuAD's), accuracy (the likeliest label),
    format (pattern, schema)."""
    pattern: str | None = value(None, rare=True)
    """A regular expression that a well-formed completion matches as a whole."""
    schema: str | None = value(None, rare=True)
    """A JSON schema's file, by which a well-formed completion is JSON."""
    general: Plug | None = None
    """Text whose loss shows what was forgotten, all of a file: data@evaluate.general=text evaluate.general.path=F."""
    diversity: bool = value(False, rare=True)
    """distinct-n, self-BLEU and entropy of the completions."""


def needs(stage: StagePlan, before: tuple[Made, ...]) -> tuple[Need, ...]:
    """Every policy that the run made, those that it started from, the reference, the reward model, and samples for its
    pairs.

    `sft` is the policy that others start from, `base` the one beneath it. A run that trains no policy evaluates the one
    that is named: actor.path, else `model`.
    """
    sections = stage.sections
    actor, reference = sections.actor.options.path, sections.reference.options.path
    policies = [one for one in before if one.spec.makes == POLICY]
    made: dict[str, str] = {}
    for one in policies:
        name = one.spec.policy_name or one.name
        made[one.name if name in made else name] = one.name
    if not made.keys() - {"base"}:
        found = [
            Need("sft", POLICY, "reference.path", reference, named_only=True),
            Need("ppo", POLICY, "actor.path", actor, earlier=False),
        ]
    else:
        sft = sections.options_of("sft")
        start = "auto" if sft is None else sft.path
        found = [_made_or_named("base", made, "sft.path", start), _made_or_named("sft", made, "actor.path", actor)]
        found += [
            Need(name, POLICY, f"{name}.path", source=source, optional=True)
            for name, source in made.items()
            if name not in ("base", "sft")
        ]
    return (*found, *_reference(policies, made.get("sft"), actor, reference), *_reward_model(stage, before))


def _reference(policies: list[Made], sft: str | None, actor: str, reference: str) -> list[Need]:
    """The reference that KL is measured to: the named one, else the actor's start in the last stage that has one, else
    the policy `sft`, which others start from."""
    if reference != AUTO:
        return [Need("reference", POLICY, "reference.path", reference)]
    places = [i for i, one in enumerate(policies) if "reference" in one.spec.sections({}, ())]
    if not policies:
        return []
    earlier = policies[: places[-1]] if places else [one for one in policies if one.name == sft]
    if actor == AUTO and earlier:
        return [Need("reference", POLICY, "actor.path", source=earlier[-1].name)]
    return [Need("reference", POLICY, "actor.path", actor, optional=True, earlier=False)]


def _made_or_named(name: str, made: dict[str, str], key: str, path: str) -> Need:
    """A policy that a stage of the run makes, else the one at `path`, else `model`."""
    unlike = "sft" if name == "base" else ""
    if name in made:
        return Need(name, POLICY, key, source=made[name], unlike=unlike)
    return Need(name, POLICY, key, path, optional=True, earlier=False, unlike=unlike)


def _reward_model(stage: StagePlan, before: tuple[Made, ...]) -> list[Need]:
    """This run's reward model, else the first that `reward` names; and the samples that its pairs come from."""
    trained = [one.name for one in before if one.spec.makes == REWARD_MODEL]
    named = [path for _, path in named_models(stage.models, "reward")]
    found = []
    if trained:
        found.append(Need("rm", REWARD_MODEL, "reward.path", source=trained[-1]))
        rm = stage.sections.options_of("rm")
        if is_sampled(None if rm is None else rm.data):
            found.append(Need("samples", SAMPLES, "rm.data.path", model=False, optional=True))
    elif named:
        found.append(Need("rm", REWARD_MODEL, "reward.path", named[0]))
    return found


def reads(own: Mapping[str, Any], kinds: Collection[str]) -> tuple[str, ...]:
    """The prompts of ppo; demonstrations of sft for `shots` or where the run has `sft`; pairs of rm."""
    demonstrations = ("sft",) if own.get("shots") or "sft" in kinds else ()
    pairs = ("rm",) if "rm" in kinds else ()
    return ("actor", "reference", "reward", "rollout", "ppo", *demonstrations, *pairs)


EVALUATE = StageSpec(
    name="evaluate",
    help="the policies of a run side by side on held-out prompts",
    options=EvaluateOptions,
    build="align.stages.evaluate.stage.build",
    makes=FIGURES,
    needs=needs,
    reads=reads,
    last=True,
)
