"""Estimates of KL(policy || reference) from sampled tokens."""

from torch import Tensor

# Where k3 = exp(x) - 1 - x is cut, so that one token cannot overflow the batch: x, then the result.
K3_LOG_RATIO = 20.0
K3_RESULT = 10.0


def kl(logp: Tensor, ref_logp: Tensor, estimator: str = "k1") -> Tensor:
    """A KL estimate per token in nats, float32, any shape, from log-probabilities of sampled tokens.

    k1 = log p/q is unbiased and may be negative; k2 = (log p/q)^2 / 2 has less variance and a bias;
    k3 = q/p - 1 - log q/p is unbiased and never negative (Schulman 2020, "Approximating KL Divergence").
    k1 and k2 are not clamped; k3's log-ratio is clamped to 20 and its result to 10.

    Raises ValueError for another estimator.
    """
    log_ratio = logp.float() - ref_logp.float()
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        inverse = (-log_ratio).clamp(-K3_LOG_RATIO, K3_LOG_RATIO)
        return (inverse.expm1() - inverse).clamp(-K3_RESULT, K3_RESULT)
    raise ValueError(f"estimator={estimator!r}: a KL estimator is one of k1, k2, k3")
