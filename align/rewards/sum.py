"""Several rewards added up.

Shapes: B completions, K terms.
"""

import difflib

import torch

from align.errors import AlignError
from align.rewards.parts import named
from align.types import Reward, RewardState, Rollout, Scored, Texts


class SumReward:
    """The weighted sum of rewards, each logged by its name.

    terms: rewards by name. weights: by the same names, 1 where none is given. A term without an opinion on a
    row (NaN) is left out of that row's sum; the sum is NaN where no term has one.

    Raises AlignError without terms, and for a weight that has no term.
    """

    def __init__(self, terms: dict[str, Reward], weights: dict[str, float] | None = None) -> None:
        if not terms:
            raise AlignError("reward=sum has no terms: add one, +reward@reward.terms.polite=kind_words")
        weights = weights or {}
        for name in weights.keys() - terms.keys():
            near = difflib.get_close_matches(name, terms, n=1)
            raise AlignError(
                f"reward.weights.{name} has no term: the terms are {', '.join(terms)}"
                + (f"; did you mean {near[0]}?" if near else f"; +reward@reward.terms.{name}=kind_words adds one")
            )
        self.terms = dict(terms)
        self.parts = {f"terms.{name}": term for name, term in terms.items()}
        self.weights = {name: float(weights.get(name, 1.0)) for name in terms}
        self.wants = set().union(*(term.wants for term in terms.values()))

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """The sum, float32, and each term before its weight, with its own terms below its name."""
        scored = {name: term(rollout, texts, state.within(name)) for name, term in self.terms.items()}
        weighted_KB = torch.stack([self.weights[name] * one.score_B.float() for name, one in scored.items()])
        score_B = weighted_KB.nansum(0).where(~weighted_KB.isnan().all(0), torch.nan)
        return Scored(score_B, {part: term for name, one in scored.items() for part, term in named(name, one).items()})
