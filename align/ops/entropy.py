"""Entropy of the next token's distribution.

Shapes: B completions, T tokens, V vocabulary.
"""

import torch
from torch import Tensor


def entropy(logits_BTV: Tensor) -> Tensor:
    """The entropy of softmax(logits) at each position in nats, float32, shape BT.

    logsumexp(x) - sum p x, which keeps a finite gradient where a probability underflows to 0; a logit of
    -inf (a token that cannot be sampled) adds nothing.
    """
    # Row by row, so that what is allocated is T x V.
    return torch.stack([_row(logits_TV) for logits_TV in logits_BTV.unbind()])


def _row(logits_TV: Tensor) -> Tensor:
    logits_TV = logits_TV.float()
    p_TV = logits_TV.softmax(-1)
    finite_TV = logits_TV.masked_fill(logits_TV == -torch.inf, 0.0)
    return logits_TV.logsumexp(-1) - (p_TV * finite_TV).sum(-1)
