"""A composed configuration, parsed once into a frozen plan of the run. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from align.config import SECTIONS, RunOptions, section_of
from align.config.fields import UNSET, checked_settings, unknown_setting
from align.config.values import NONE, TARGET, Plug, Settings, plug_of
from align.errors import AlignError, typed
from align.plan.checks import check_plan
from align.plan.inputs import taken, with_inputs
from align.plan.order import kind_of, named_stages, ordered, with_evaluation
from align.plan.plan import RunPlan, Section, Sections, StagePlan
from align.plan.rewards import models_of
from align.plan.spec import StageSpec

REPLACEABLE = ("actor", "critic", "reference", "rollout", "watch")
"""Sections whose class may be replaced, and which have settings of ours."""
PLUGS = ("reward", "advantage", "policy_loss")
"""Sections that are a class or a function with its arguments."""
FROM_ENVIRONMENT = "${oc.env:"
EXAMPLES = {
    "fn": ("my_rewards.brevity", " (a function of my_rewards.py in the folder you stand in)"),
    "buffer": ("16", ""),
    "pattern": ("<think>.*</think>.*", ""),
    "schema": ("answer.schema.json", ""),
    "column": ("task", " (a column of the prompts)"),
    "url": ("http://localhost:8000/score", " (of a chat server: http://localhost:8000/v1)"),
}
"""Example of a value for a setting that has none, by its last name, and a remark."""


def parse(values: Mapping[str, Any], specs: Mapping[str, StageSpec]) -> RunPlan:
    """The plan of a resolved configuration, in which values from the environment are still `${oc.env:…}`.

    They stay so in the settings of plugs, and are read where they are plain settings of ours. Raises AlignError for
    everything that is wrong in the configuration alone.
    """
    run = options_of(RunOptions, {one.name: values[one.name] for one in fields(RunOptions)}, "")
    names = with_evaluation(named_stages(run.stages, specs), specs, judges(values))
    _check_set(values)
    unordered = [_stage(name, values, specs, set(map(kind_of, names))) for name in names]
    order = ordered(names, specs, taken(unordered))
    by_name = {stage.name: stage for stage in unordered}
    runs = f"{run.runs}/{run.name}/latest"
    plan = RunPlan(
        **{**vars(run), "stages": with_inputs([by_name[name] for name in order], run.model, runs, specs)},
        tracker=_plug(values.get("tracker"), "tracker"),
    )
    check_plan(plan)
    return plan


def judges(values: Mapping[str, Any]) -> bool:
    """Return True where the section of the evaluation needs something that a run without PPO can give."""
    evaluate = values.get("evaluate") or {}
    general = evaluate.get("general")
    return bool(
        evaluate.get("judge") is not None or evaluate.get("shots") or evaluate.get("diversity")
        or (general is not None and general.get(TARGET) != NONE)
    )  # fmt: skip


def read(value: Any) -> Any:
    """A plain setting, taken from the environment where it is `${oc.env:…}`."""
    if isinstance(value, str) and FROM_ENVIRONMENT in value:
        return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]
    return value


def options_of(cls: type, values: Mapping[str, Any], key: str) -> Any:
    """The settings of a section in their class, which checks them. Raises AlignError for one that it does not have."""
    kinds, found = {one.name: str(one.type) for one in fields(cls)}, {}
    for name, value in values.items():
        if name == TARGET:
            continue
        if name not in kinds:
            raise unknown_setting(f"{key}.{name}", value, kinds)
        found[name] = _plug(value, f"{key}.{name}") if "Plug" in kinds[name] else read(value)
    return cls(**found)


def _stage(name: str, values: Mapping[str, Any], specs: Mapping[str, StageSpec], kinds: set[str]) -> StagePlan:
    """A stage with its own settings and the sections that it reads."""
    spec = specs[kind_of(name)]
    own = _own(values, spec.name)
    options = options_of(spec.options, own, spec.name)
    found: dict[str, Any] = {}
    others: list[tuple[str, object]] = []
    for key in spec.sections(own, kinds):
        node = values.get(key)
        if node is None or node.get(TARGET) == NONE:
            continue
        if key in PLUGS:
            found[key] = _plug(node, key)
        elif key in REPLACEABLE:
            found[key] = _section(SECTIONS[key], node, key)
        else:
            others.append((key, options_of(specs[key].options, node, key)))
    sections = Sections(**found, stages=tuple(others))
    judge = getattr(options, "judge", None)
    watched = sections.watch.options.judge if sections.watch else None
    models = models_of([sections.reward, judge if isinstance(judge, Plug) else None, watched])
    return StagePlan(name, spec, options, sections, models=models)


def _plug(node: Any, key: str) -> Plug | None:
    """A plug; the settings of those that are ours are checked, inside it, too."""
    plug = plug_of(node, key)
    return None if plug is None else _checked(plug)


def _checked(value: Any) -> Any:
    """A value whose plugs have their settings as the sections of ours have them."""
    if isinstance(value, Settings):
        return Settings(tuple((name, _checked(inner)) for name, inner in value.items()))
    if not isinstance(value, Plug):
        return value
    section = section_of(value.target)
    settings = value.settings if section is None else checked_settings(section, value.settings, value.key)
    return value.given(_checked(settings))


def _own(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    node = values.get(name)
    if not isinstance(node, Mapping):
        raise AlignError(f"{name}={node}: no section of settings\n  use {name}.KEY=VALUE")
    return node


def _section(cls: type, node: Mapping[str, Any], key: str) -> Section:
    """A section with settings of ours, and those of a class of the user's beside them."""
    target = node.get(TARGET, cls.TARGET)
    ours = {one.name for one in fields(cls)} if target != cls.TARGET else node
    own = {name: value for name, value in node.items() if name not in ours and name != TARGET}
    options = options_of(cls, {name: value for name, value in node.items() if name in ours}, key)
    return Section(target, options, Settings.of(own, key))


def _check_set(values: Mapping[str, Any]) -> None:
    """Raise AlignError for a setting that is still to be given a value."""
    for key in sorted(_unset(values, "")):
        example, remark = EXAMPLES.get(key.rpartition(".")[2], ("VALUE", ""))
        raise AlignError(f"{key} is not set\n  use {typed(key, example)}{remark}")


def _unset(node: Any, key: str) -> list[str]:
    if isinstance(node, Mapping):
        return [one for name, value in node.items() for one in _unset(value, f"{key}.{name}".lstrip("."))]
    return [key] if node == UNSET else []
