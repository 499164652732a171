"""A KL coefficient that follows a target."""

# The coefficient moves by no more than this share, a horizon of completions: Ziegler et al. 2019, section 2.2.
ERROR = 0.2


class AdaptiveKL:
    """`value`, the price of a nat, raised while the KL is above its target and lowered while below.

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2; lm-human-preferences `train_policy.py`, with init 0.15,
    target 6 nats a sequence, horizon 10,000 completions. A batch of more is taken a horizon at a time, so that the
    price stays above 0.

    Raises ValueError for an init, target or horizon that is not above 0: the coefficient would never move, or jump.
    """

    def __init__(self, init: float, target: float, horizon: float) -> None:
        for name, number in (("init", init), ("target", target), ("horizon", horizon)):
            if not number > 0:
                raise ValueError(f"{name}={number}: an adaptive KL coefficient needs a number above 0")
        self.value = init
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, n: int) -> float:
        """The coefficient after `n` completions whose mean KL is `kl`, in the target's units (nats a sequence).

        value *= 1 + clip(kl / target - 1, -0.2, 0.2) n / horizon, up to a horizon

        >>> AdaptiveKL(init=0.1, target=6.0, horizon=100).update(kl=12.0, n=50)  # far above: 0.2 * 50 / 100
        0.11000000000000001
        """
        error = min(max(kl / self.target - 1, -ERROR), ERROR)
        horizons, rest = divmod(n / self.horizon, 1)
        self.value *= (1 + error) ** horizons * (1 + error * rest)
        return self.value
