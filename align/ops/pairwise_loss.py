"""The loss of a reward model on preference pairs.

Shapes: B pairs.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid


def pairwise_loss(
    chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | None = None, share_B: Tensor | None = None
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) of each pair in nats, float32, shape B.

    Ouyang et al. 2022 (arXiv 2203.02155), equation 1; the margin from Touvron et al. 2023 (Llama 2,
    arXiv 2307.09288), equation 2. `share_B` is the probability, from 0 to 1, that chosen is the better one, by which
    the loss is the cross-entropy of a soft label: -share log sigmoid(d) - (1 - share) log sigmoid(-d).
    """
    difference_B = chosen_B.float() - rejected_B.float()
    if margin_B is not None:
        difference_B = difference_B - margin_B.float()
    if share_B is None:
        return -logsigmoid(difference_B)
    share_B = share_B.float()
    return -share_B * logsigmoid(difference_B) - (1 - share_B) * logsigmoid(-difference_B)
