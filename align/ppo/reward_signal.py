"""Checks that a reward has something to say; each finding is reported once on the way.

Shapes: B completions.
"""

from __future__ import annotations

from align.errors import AlignError
from align.types import Scored

SILENT_STEPS = 3
"""Steps at the start in which nothing has a score, after which a run ends: it would train nothing."""


class Signal:
    """Warnings about the scores of a run's steps, each at its first sight.

    steps: number of steps of the run; dynamic_sampling: `ppo.dynamic_sampling`.
    """

    def __init__(self, steps: int, dynamic_sampling: int) -> None:
        self.patience = min(SILENT_STEPS, steps)
        self.dynamic_sampling = dynamic_sampling
        self.scored = False
        """Some completion had a score."""
        self.warned: set[str] = set()

    def see(self, step: int, scored: Scored, metrics: dict[str, float]) -> list[str]:
        """Warnings at this step. `metrics` are PPO's of the step, `scored` its batch.

        Raises AlignError where no completion of the first steps has a score.
        """
        known_B = scored.score_B[~scored.score_B.isnan()]
        self.scored |= len(known_B) > 0
        if not self.scored and step == self.patience:
            raise AlignError(_silent(step, list(scored.terms)))
        if len(known_B) > 1 and known_B.min() == known_B.max():
            return self._once("constant", _constant(step, float(known_B[0]), len(known_B)))
        if len(known_B) and metrics.get("rollout/alike_share") == 1:
            return self._once("alike", self._alike(step, int(metrics["rollout/extra_batches"])))
        return []

    def _once(self, what: str, warning: str) -> list[str]:
        if what in self.warned:
            return []
        self.warned.add(what)
        return [warning]

    def _alike(self, step: int, drawn: int) -> str:
        batches = f", those of {drawn} further batches, too" if drawn else ""
        others = "" if self.dynamic_sampling else ", or ppo.dynamic_sampling=3, which looks for others"
        return (
            f"warning: step {step}: the samples of each prompt all score alike{batches}: nothing tells the good ones "
            "from the bad; use more rollout.samples_per_prompt, a higher rollout.temperature, a reward of finer "
            f"steps, prompts that are neither too easy nor too hard{others}"
        )


def _constant(step: int, score: float, completions: int) -> str:
    return (
        f"warning: step {step}: all {completions} completions score {score:g}: the reward tells none apart, and there "
        "is nothing to learn but to stay near the reference; look at samples (ppo.show_every=1) and at what the "
        "reward makes of them"
    )


def _silent(step: int, terms: list[str]) -> str:
    steps = f"the first {step} steps" if step > 1 else "step 1"
    named = f"{', '.join(terms)}: " if terms else ""
    return (
        f"reward: no completion of {steps} has a score ({named}None on every row), so that nothing was "
        "trained\n  use a reward that returns numbers for rows like these; look at which columns of ppo.data it "
        "goes by, and in which form it wants the completion"
    )
