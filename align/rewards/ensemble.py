r"""Several reward models as one, wary of where they disagree.

    align experiment=tiny rm.members=3 reward=ensemble
    align reward=ensemble reward.path=[A,B,C] reward.combine=minimum
    align reward=ensemble +reward@reward.terms.a=model reward.terms.a.path=A \
        +reward@reward.terms.b=model reward.terms.b.path=B

Coste et al. 2023, "Reward model ensembles help mitigate overoptimization" (arXiv 2310.02743), compare the mean, the
minimum and a mean less a price of the spread.

Shapes: B completions, K members.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from align.rewards.parts import named
from align.types import Reward, RewardState, Rollout, Scored, Texts

COMBINE = ("mean", "lower_bound", "minimum")


class EnsembleReward:
    """The mean of its members' scores, the mean less `spread_coef` deviations (lower_bound), or the least of them.

    Each member is logged by its name, and as `disagreement` their deviation on each row: of the members as they are,
    not of a sample (divided by K). A member without an opinion on a row (NaN) is left out there; the score is NaN
    where none has one.

    Raises ValueError with fewer than two members, for another word in `combine`, and for a `spread_coef` below 0.
    """

    def __init__(self, terms: dict[str, Reward], combine: str = "lower_bound", spread_coef: float = 1.0) -> None:
        if len(terms) < 2:
            raise ValueError(
                f"terms has {len(terms)} of the two or more that reward=ensemble combines: "
                "+reward@reward.terms.a=model adds one"
            )
        if combine not in COMBINE:
            raise ValueError(f"combine={combine}: use one of {', '.join(COMBINE)}")
        number = isinstance(spread_coef, int | float) and not isinstance(spread_coef, bool)
        if not number or not 0 <= spread_coef < math.inf:
            raise ValueError(f"spread_coef={spread_coef}: use a number from 0")
        self.terms, self.combine, self.spread_coef = dict(terms), combine, spread_coef
        self.rewards_inside = {f"terms.{name}": term for name, term in terms.items()}
        self.wants = set().union(*(term.wants for term in terms.values()))

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        scores, terms = [], {}
        for name, term in self.terms.items():
            scored = term(rollout, texts, state.within(name))
            terms |= named(name, scored)
            scores.append(scored.score_B.float())
        score_KB = torch.stack(scores)
        mean_B = score_KB.nanmean(0)
        deviation_B = ((score_KB - mean_B) ** 2).nanmean(0).sqrt()
        return Scored(self._combined(score_KB, mean_B, deviation_B), terms | {"disagreement": deviation_B})

    def _combined(self, score_KB: Tensor, mean_B: Tensor, deviation_B: Tensor) -> Tensor:
        if self.combine == "minimum":
            least_B = score_KB.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).amin(0)
            return least_B.where(~mean_B.isnan(), torch.nan)
        return mean_B - self.spread_coef * deviation_B if self.combine == "lower_bound" else mean_B
