"""Direct preference optimisation.

Shapes: B pairs.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(
    policy_chosen_logp_B: Tensor,
    policy_rejected_logp_B: Tensor,
    ref_chosen_logp_B: Tensor,
    ref_rejected_logp_B: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log sigmoid(beta h) of each pair in nats, float32, shape B; h is how much further the policy parts the two.

    h = log p(chosen)/p(rejected) of the policy less that of the reference, from the log-probabilities of whole
    completions (Rafailov et al. 2023, arXiv 2305.18290, equation 7). `label_smoothing` is the share of pairs
    taken to be the wrong way round (Mitchell 2023, "cDPO"): -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h).
    """
    policy_B = policy_chosen_logp_B.float() - policy_rejected_logp_B.float()
    ref_B = ref_chosen_logp_B.float() - ref_rejected_logp_B.float()
    logit_B = beta * (policy_B - ref_B)
    return -(1 - label_smoothing) * logsigmoid(logit_B) - label_smoothing * logsigmoid(-logit_B)
