"""Checks of a run's steps: scores that teach nothing, log-probabilities that are not the policy's; each reported once.

Shapes: B completions.
"""

from __future__ import annotations

import torch

from align import ops
from align.errors import AlignError
from align.types import Scored

SILENT_STEPS = 3
"""Steps at the start in which nothing has a score, after which a run ends: it would train nothing."""


GAP = {torch.float32: 0.02, torch.bfloat16: 0.2}
"""Mean gap in nats a token between the log-probabilities of engine and trainer that kernels explain, by the weights'
dtype: two to five times the largest that was seen."""


class Signal:
    """Warnings about a run's steps, each at its first sight.

    steps: number of steps of the run; dynamic_sampling: `ppo.dynamic_sampling`; dtype: of the policy's weights.
    """

    def __init__(self, steps: int, dynamic_sampling: int, dtype: torch.dtype = torch.float32) -> None:
        self.gap = GAP.get(dtype, max(GAP.values()))
        self.silent: dict[str, bool] = {}
        """By term: it was None on every row so far."""
        self.patience = min(SILENT_STEPS, steps)
        self.dynamic_sampling = dynamic_sampling
        self.scored = False
        """Some completion had a score."""
        self.warned: set[str] = set()

    def see(self, step: int, scored: Scored, metrics: dict[str, float]) -> list[str]:
        """Warnings at this step. `metrics` are PPO's of the step, `scored` its batch.

        Raises AlignError where no completion of the first steps has a score.
        """
        return [*self._engine(step, metrics), *self._silent_rows(step, scored), *self._scores(step, scored, metrics)]

    def _engine(self, step: int, metrics: dict[str, float]) -> list[str]:
        gap = metrics.get("val/engine_logp_gap_mean", 0.0)
        return self._once("gap", _gap(step, gap)) if gap > self.gap else []

    def _silent_rows(self, step: int, scored: Scored) -> list[str]:
        """Rows without a score while others have one, and terms that are None on every row of the first steps."""
        found = []
        unscored = int(scored.score_B.isnan().sum())
        if 0 < unscored < len(scored.score_B):
            found += self._once("unscored", _unscored(step, unscored, len(scored.score_B)))
        for name, term_B in scored.terms.items():
            self.silent[name] = self.silent.get(name, True) and bool(term_B.isnan().all())
            if self.silent[name] and step == self.patience:
                found += self._once(f"term {name}", _silent_term(step, name))
        return found

    def _scores(self, step: int, scored: Scored, metrics: dict[str, float]) -> list[str]:
        known_B = scored.score_B[~scored.score_B.isnan()]
        self.scored |= len(known_B) > 0
        if not self.scored and step == self.patience:
            raise AlignError(_silent(step, list(scored.terms)))
        if len(known_B) > 1 and bool(ops.alike(known_B, torch.zeros(len(known_B))).all()):
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


def _gap(step: int, gap: float) -> str:
    return (
        f"warning: step {step}: the rollout engine's log-probabilities differ from the trainer's by {gap:.2g} nats a "
        "token on average, more than other kernels explain: it samples from another policy; use rollout=hf to compare, "
        "or ppo.importance_correction=token where the engine is meant to be another"
    )


def _unscored(step: int, unscored: int, completions: int) -> str:
    return (
        f"warning: step {step}: {unscored} of {completions} completions have no score and are left out of the update "
        "(every term of the reward is None there); objective/unscored in metrics.jsonl counts them in each step"
    )


def _silent_term(step: int, name: str) -> str:
    steps = f"the first {step} steps" if step > 1 else "step 1"
    return (
        f"warning: reward term {name}: None on every row of {steps}, so that it changes nothing; look at which columns "
        "of ppo.data it goes by"
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
