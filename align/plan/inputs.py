"""Inputs of each stage of a run, their sources, and the model from which a chain of stages starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from align.config import SampledOptions
from align.config.values import Plug
from align.errors import AlignError
from align.plan.order import kind_of
from align.plan.plan import Input, Origin, StagePlan
from align.plan.rewards import real
from align.plan.spec import AUTO, POLICY, REWARD_MODEL, SAMPLES, Made, Need, StageSpec


def is_sampled(data: Plug | None) -> bool:
    """Return True where data are those that this run samples."""
    return data is not None and data.target == SampledOptions.TARGET and data.get("path") == AUTO


def needs_of(stage: StagePlan, before: tuple[Made, ...]) -> tuple[Need, ...]:
    """A stage's needs, samples among them where its data are sampled in this run."""
    found = stage.spec.needs(stage, before)
    if is_sampled(getattr(stage.options, "data", None)):
        found = (*found, Need("samples", SAMPLES, f"{stage.spec.name}.data.path", model=False))
    return found


def taken(stages: list[StagePlan]) -> dict[str, set[str]]:
    """Whose samples and reward models each stage takes: those typed before it, else those typed behind it.

    A policy sets an order where the stage's spec has none (`after`): a stage that takes one mostly makes one, so that
    any two could take each other's.
    """
    found: dict[str, set[str]] = {}
    for place, stage in enumerate(stages):
        found[stage.name] = set()
        for need in needs_of(stage, ()):
            if need.path == AUTO and need.makes in (SAMPLES, REWARD_MODEL) and not need.like and need.earlier:
                makers = [one.name for one in stages if one.spec.makes == need.makes and one is not stage]
                before = [one.name for one in stages[:place] if one.name in makers]
                found[stage.name] |= set(before[-1:] or makers[:1])
            elif need.makes == POLICY and need.path == AUTO and not stage.spec.after and not stage.spec.last:
                found[stage.name] |= {one.name for one in stages[:place] if one.spec.makes == POLICY}
            elif need.like and need.path == AUTO:
                found[stage.name] |= {one.name for one in stages if one.spec.makes == need.makes}
    return found


def stage_in_run(folder: str | Path, makes: str, specs: Mapping[str, StageSpec]) -> Path | None:
    """The folder of the last stage that makes `makes`, in the folder of a run; None for the folder of anything else."""
    folder = Path(folder).expanduser()
    if (folder / "config.json").exists() or (folder / "adapter_config.json").exists():
        return None
    order = {name: place for place, (name, spec) in enumerate(specs.items()) if spec.makes == makes}
    made = [card for card in folder.glob("*/card.json") if kind_of(card.parent.name) in order]
    last = max(made, key=lambda card: (card.stat().st_mtime_ns, order[kind_of(card.parent.name)]), default=None)
    return None if last is None else last.parent


def check_no_run(inputs: Iterable[Input], specs: Mapping[str, StageSpec]) -> None:
    """Raise AlignError for the folder of a whole run where that of one of its stages is to be named."""
    for one in inputs:
        found = stage_in_run(one.path, one.makes, specs) if one.path else None
        if found is not None:
            raise AlignError(
                f"{one.key}={one.path}: it is a run, not the {one.makes} of a stage\n  use {one.key}={found}"
            )


def with_inputs(
    stages: list[StagePlan], model: str | None, runs: str, specs: Mapping[str, StageSpec]
) -> tuple[StagePlan, ...]:
    """The stages, in the order in which they run, with their inputs.

    Raises AlignError for a need without any source, with ways to give one, and for a run's folder.
    """
    done: list[StagePlan] = []
    for stage in stages:
        before = tuple(Made(one.name, one.spec) for one in done)
        inputs: dict[str, Input] = {}
        needs = needs_of(stage, before)
        for need in needs:
            found = _find(need, stage, done, inputs, model, runs, [one.name for one in stages])
            if found is not None:
                inputs[need.name] = found
        for need in needs:
            if need.unlike in inputs and _same(inputs.get(need.name), inputs[need.unlike]):
                del inputs[need.name]
        check_no_run(inputs.values(), specs)
        done.append(replace(stage, inputs=tuple(inputs.values()), before=tuple(one.name for one in done)))
    return tuple(done)


def _find(
    need: Need, stage: StagePlan, done: list[StagePlan], inputs: dict[str, Input], model: str | None, runs: str,
    names: list[str],
) -> Input | None:  # fmt: skip
    if need.path != AUTO:
        return _named(need, need.key, need.path)
    if need.named_only:
        return None
    makers = [one for one in done if one.spec.makes == need.makes and need.source in ("", one.name) and need.earlier]
    if makers:
        source = makers[-1]
        return Input(need.name, need.key, source=source.name, makes=need.makes, origin=origin_of(source))
    if need.like in inputs:
        return replace(inputs[need.like], name=need.name, key=need.key)
    if need.model and model:
        return _named(need, "model", model)
    if need.optional or need.source:
        return None
    raise AlignError(_missing(need, stage, runs, names))


def _named(need: Need, key: str, path: str) -> Input:
    return Input(need.name, key, path, real(path), makes=need.makes, origin=Origin(key, path))


def _same(one: Input | None, other: Input) -> bool:
    return one is not None and (one.real, one.source) == (other.real, other.source)


def origin_of(stage: StagePlan) -> Origin:
    """The model that a stage's result descends from."""
    for one in stage.inputs:
        if one.name in ("path", "actor") and one.origin is not None:
            return one.origin
    shape = tuple(stage.spec.shape(stage.options).items()) if stage.spec.shape else ()
    return Origin(f"the model that {stage.name} makes", shape=shape)


def _missing(need: Need, stage: StagePlan, runs: str, names: list[str]) -> str:
    usual = {POLICY: "sft", REWARD_MODEL: "rm", SAMPLES: "preferences"}[need.makes]
    usual = need.name if stage.spec.last else usual
    trained = [name for name in names if name != "evaluate"]
    ways = ["model=FOLDER (or a hub name)"] if need.model else []
    ways += [f"{need.key}={runs}/{usual} (of an earlier run)"]
    ways += [f"stages=[{','.join([usual, *trained])}]"] if usual not in names else []
    if need.makes == REWARD_MODEL:
        ways += ["another reward (reward=fn reward.fn=module.function)"]
    return (
        f"{need.key} is auto, and no stage of this run makes the {need.makes} that {stage.name} needs\n"
        f"  use {', '.join(ways[:-1])}{', or ' if len(ways) > 1 else ''}{ways[-1]}"
    )
