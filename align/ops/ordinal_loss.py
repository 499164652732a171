"""The loss of a reward model on ratings of a few levels, of which only the order counts.

Shapes: B completions, L levels.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def ordinal_loss(score_B: Tensor, level_B: Tensor, threshold_L: Tensor) -> Tensor:
    """-log p(level) of each completion in nats, float32, shape B; levels count from 0, the lowest first.

    Proportional odds (McCullagh 1980, "Regression models for ordinal data"): p(level <= k) = sigmoid(threshold k -
    score). `threshold_L` rises and has one entry fewer than there are levels, here L.
    """
    gap_BL = threshold_L.float() - score_B.float()[:, None]
    edge_B1 = torch.full_like(gap_BL[:, :1], torch.inf)
    above_B1 = torch.cat([gap_BL, edge_B1], 1).gather(1, level_B[:, None])
    below_B1 = torch.cat([-edge_B1, gap_BL], 1).gather(1, level_B[:, None])
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), without the difference of two numbers near 1
    inside_B1 = torch.log(-torch.expm1(below_B1 - above_B1))
    return -(logsigmoid(above_B1) + logsigmoid(-below_B1) + inside_B1).squeeze(1)
