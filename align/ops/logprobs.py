"""Log-probabilities of given tokens.

Shapes: B completions, T tokens, V vocabulary.
"""

import torch
from torch import Tensor


def logprobs(logits_BTV: Tensor, ids_BT: Tensor, temperature: float = 1.0) -> Tensor:
    """The log-probability of each token of `ids_BT` at a sampling temperature, float32, shape BT.

    Position t of the logits predicts token t of the ids: shifting is the caller's. The same temperature
    belongs to the policy, the old policy and the reference: vwxyzjn/summarize_from_feedback_details `ppo.py`
    divides the logits by it before every log-softmax.

    Raises ValueError for a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: a log-probability needs a temperature above 0")
    # Row by row, and gather minus logsumexp, not log-softmax: what is allocated is T x V, not B x T x V.
    rows = zip(logits_BTV.unbind(), ids_BT.unbind(), strict=True)
    return torch.stack([_row(logits_TV, ids_T, temperature) for logits_TV, ids_T in rows])


def _row(logits_TV: Tensor, ids_T: Tensor, temperature: float) -> Tensor:
    logits_TV = logits_TV.float()
    if temperature != 1.0:
        logits_TV = logits_TV / temperature
    return logits_TV.gather(-1, ids_T.unsqueeze(-1)).squeeze(-1) - logits_TV.logsumexp(-1)
