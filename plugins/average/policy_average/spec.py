"""The stage `average`: its settings and its spec. No torch, so that the command line stays quick."""

from __future__ import annotations

from align.config.fields import number, section
from align.plan.plan import StagePlan
from align.plan.spec import JUDGED, POLICY, Made, Need, StageSpec


@section("average")
class AverageOptions:
    path: str = "auto"
    """The policy that is moved back; auto: this run's newest policy."""
    start: str = "auto"
    """The policy that it is moved towards; auto: the one that this run made before it."""
    share: float = number(0.5, low=0, high=1)
    """Share of `path` in the average: 1 is `path` itself, 0 is `start`."""


def needs(stage: StagePlan, before: tuple[Made, ...]) -> tuple[Need, ...]:
    """The newest policy of the run and the one before it, unless others are named."""
    made = [one.name for one in before if one.spec.makes == POLICY]
    earlier = made[-2] if len(made) > 1 else ""
    return (
        Need("path", POLICY, "average.path", stage.options.path),
        Need("start", POLICY, "average.start", stage.options.start, source=earlier, model=not earlier),
    )


AVERAGE = StageSpec(
    name="average",
    help="the average of two policies' weights",
    options=AverageOptions,
    build="policy_average.stage.build",
    makes=POLICY,
    needs=needs,
    evaluated=JUDGED,
)
