"""Several rewards added up.

    align reward=sum +reward@reward.terms.rm=model +reward@reward.terms.polite=kind_words reward.weights.polite=0.5

Shapes: B completions, K terms.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch

from align.rewards.deviations import Deviations
from align.rewards.parts import named
from align.rewards.weight import weight_of
from align.types import Reward, RewardState, Rollout, Scored, Texts

NORMALIZE = ("none", "batch", "running")


class SumReward:
    """The weighted sum of rewards, each logged by its name.

    terms: rewards by name. weights: by the same names, 1 where none is given; a list of points is a weight that
    moves over the steps (align/rewards/weight.py), and is logged. A term without an opinion on a row (NaN) is
    left out of that row's sum; the sum is NaN where no term has one.

    normalize: before its weight, each term is divided by its deviation over the batch, or over all batches so
    far (`running`); its mean stays where it is, in the new unit. A batch that is not trained on is divided by the
    deviations that training has come to.

    Raises ValueError without terms, for a weight that has no term or is none, and where all weights are 0.
    """

    def __init__(
        self, terms: dict[str, Reward], weights: dict[str, Any] | None = None, normalize: str = "none"
    ) -> None:
        if not terms:
            raise ValueError("terms has none for reward=sum to add: +reward@reward.terms.polite=kind_words adds one")
        weights = weights or {}
        for name in weights.keys() - terms.keys():
            near = difflib.get_close_matches(name, terms, n=1)
            raise ValueError(
                f"weights.{name} has no term: the terms are {', '.join(terms)}"
                + (f"; did you mean {near[0]}?" if near else f"; +reward@reward.terms.{name}=kind_words adds one")
            )
        if normalize not in NORMALIZE:
            raise ValueError(f"normalize={normalize}: write one of {', '.join(NORMALIZE)}")
        self.terms = dict(terms)
        self.rewards_inside = {f"terms.{name}": term for name, term in terms.items()}
        self.weights = {name: weight_of(weights.get(name, 1.0), f"weights.{name}") for name in terms}
        if not any(weight for one in self.weights.values() for _, weight in one.points):
            raise ValueError("weights are all 0, so that every score is: write one that is not")
        self.deviations = None if normalize == "none" else Deviations(normalize == "running")
        self.wants = set().union(*(term.wants for term in terms.values()))

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """The sum, float32, and each term before its weight, with its own terms below its name."""
        weighted, terms = [], {}
        for name, term in self.terms.items():
            scored = term(rollout, texts, state.within(name))
            terms |= named(name, scored)
            score_B, weight = scored.score_B.float(), self.weights[name].at(state.step)
            if self.deviations:
                deviation = self.deviations.of(name, score_B, state.training)
                state.log_metric(f"{state.place}/{name}/deviation", deviation)
                score_B = score_B / deviation
            if self.weights[name].moves():
                state.log_metric(f"{state.place}/{name}/weight", weight)
            weighted.append(weight * score_B)
        weighted_KB = torch.stack(weighted)
        return Scored(weighted_KB.nansum(0).where(~weighted_KB.isnan().all(0), torch.nan), terms)

    def learned(self) -> dict[str, Any]:
        return self.deviations.learned() if self.deviations else {}

    def load_learned(self, saved: dict[str, Any]) -> None:
        if self.deviations:
            self.deviations.load_learned(saved)
