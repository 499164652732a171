"""A kind of stage as the project knows it, torch-free: what it is set by, takes and makes, and where its code lies.

A stage is registered by a yaml in a folder `conf/stage`, of the folder one stands in or of an installed plugin, whose
`_target_` names its StageSpec. Inputs, order, help, tables, search, evaluation and export follow from the specs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

POLICY, REWARD_MODEL, SAMPLES, FIGURES = "policy", "reward model", "samples", "figures"
"""Kinds of results that a stage leaves in its folder."""
ALWAYS, JUDGED, NEVER = "always", "where a judge or a question is set", "never"
"""When the evaluation is added to a run that does not name it."""
AUTO = "auto"


@dataclass(frozen=True)
class Need:
    """An input of a stage: a folder that another stage of the run made, or that the user names."""

    name: str
    """The input's name in `Stage.run(inputs, …)`."""
    makes: str
    """Content of the folder: POLICY, REWARD_MODEL or SAMPLES."""
    key: str
    """The configuration key that names the folder."""
    path: str = AUTO
    """The key's value; auto: the newest result of an earlier stage that makes it."""
    model: bool = True
    """Without such a stage, the key `model` will do."""
    like: str = ""
    """Without such a stage, the input of this name will do."""
    named_only: bool = False
    """auto: there is no such input."""
    optional: bool = False
    """Without any source there is no such input, and no error."""
    source: str = ""
    """The stage of the run that makes it, where only that one will do."""
    earlier: bool = True
    """auto: look among earlier stages."""
    unlike: str = ""
    """There is no such input where it is the same folder as the input of this name."""


@dataclass(frozen=True)
class Made:
    """A stage of the same run, as the needs of a later one see it."""

    name: str
    spec: StageSpec


Needs: TypeAlias = "Callable[[Any, tuple[Made, ...]], tuple[Need, ...]]"
"""needs(stage plan without its inputs, the stages before it in the run) -> its needs"""
Reads: TypeAlias = "Callable[[Mapping[str, Any], Collection[str]], tuple[str, ...]]"
"""reads(the stage's own section, the kinds of stages in the run) -> other sections that it reads"""


@dataclass(frozen=True)
class StageSpec:
    name: str
    help: str
    """One line."""
    options: type
    """A class made by `align.config.fields.section`."""
    build: str
    """Dotted path of build(stage: StagePlan, runtime) -> Stage, imported when the stage is to run."""
    makes: str = FIGURES
    needs: Needs = lambda stage, before: ()
    reads: tuple[str, ...] | Reads = ()
    """Other sections of the configuration: actor, rollout, reward, …, or those of other stages."""
    after: tuple[str, ...] = ()
    """Kinds of stages that come first where a run has both, unless one takes the other's result."""
    merit: str | None = None
    """The figure that a search goes by, of those in card.json."""
    more_is_better: bool = False
    evaluated: str = NEVER
    """Condition on which the evaluation closes a run of this stage: ALWAYS, JUDGED or NEVER."""
    last: bool = False
    """It runs at the end, behind all others."""
    policy_name: str = ""
    """Name of the policy that it makes, in tables; unset: the stage's name."""
    shape: Callable[[Any], Mapping[str, int]] | None = None
    """Of a stage that makes a model from nothing: what its options tell of the model's config.json."""

    def sections(self, own: Mapping[str, Any], kinds: Collection[str]) -> tuple[str, ...]:
        """The other sections that an instance with these settings reads, in a run of these kinds of stages."""
        return self.reads(own, kinds) if callable(self.reads) else self.reads
