"""A run as it was configured: parsed once, frozen, hashable, without torch and without Hydra's objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from align.config import ActorOptions, CriticOptions, ReferenceOptions, RolloutOptions, WatchOptions
from align.config.values import Plug, Settings
from align.plan.spec import StageSpec

T = TypeVar("T")
NO_SETTINGS = Settings()


@dataclass(frozen=True)
class Section(Generic[T]):
    """A section whose class may be replaced: our options, and settings that a class of the user's has beside them."""

    target: str
    options: T
    own: Settings = NO_SETTINGS


@dataclass(frozen=True)
class Sections:
    """Sections that several stages read; None: not there, the choice `none`, or not read by this stage."""

    actor: Section[ActorOptions] | None = None
    critic: Section[CriticOptions] | None = None
    reference: Section[ReferenceOptions] | None = None
    reward: Plug | None = None
    rollout: Section[RolloutOptions] | None = None
    advantage: Plug | None = None
    policy_loss: Plug | None = None
    watch: Section[WatchOptions] | None = None
    stages: tuple[tuple[str, object], ...] = ()
    """Options of other stages, by name."""

    def options_of(self, stage: str) -> Any:
        """The options of another stage; None where it is not read."""
        return dict(self.stages).get(stage)


@dataclass(frozen=True)
class Origin:
    """The model that a chain of stages starts from: a folder, or one that a stage of the run makes from nothing."""

    key: str
    path: str | None = None
    shape: tuple[tuple[str, int], ...] = ()
    """Known entries of the config.json of a model that is still to be made."""


@dataclass(frozen=True)
class Input:
    """A folder that a stage is given: named by the user, or made by an earlier stage of the run."""

    name: str
    key: str
    path: str | None = None
    """As the user names it."""
    real: str | None = None
    """Real place of `path`: `runs/NAME/latest` is another place once the run has a folder."""
    source: str | None = None
    """The stage that makes it."""
    makes: str = ""
    """POLICY, REWARD_MODEL or SAMPLES."""
    origin: Origin | None = None


@dataclass(frozen=True)
class StagePlan:
    """An instance of a stage."""

    name: str
    spec: StageSpec
    options: Any
    sections: Sections
    inputs: tuple[Input, ...] = ()
    models: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Folders of the reward models that rewards of this stage name, by the reward's key."""
    before: tuple[str, ...] = ()
    """The stages of the run that come before it."""

    def input(self, name: str) -> Input | None:
        return next((one for one in self.inputs if one.name == name), None)

    def models_at(self, key: str) -> tuple[str, ...]:
        """The reward models that the reward at `key` names; () where it takes this run's."""
        return dict(self.models).get(key, ())

    def known(self) -> dict[str, str]:
        """The inputs that are there before the run starts, by name, as the user names them."""
        return {one.name: one.path for one in self.inputs if one.path is not None}


@dataclass(frozen=True)
class RunPlan:
    name: str
    seed: int
    model: str | None
    runs: str
    device: str
    precision: str
    cpu_linear: str
    tracker: Plug | None
    stages: tuple[StagePlan, ...]
    """In the order in which they run."""

    def stage(self, name: str) -> StagePlan | None:
        return next((one for one in self.stages if one.name == name), None)

    def kinds(self, kind: str) -> tuple[StagePlan, ...]:
        """The instances of a kind of stage."""
        return tuple(one for one in self.stages if one.spec.name == kind)
