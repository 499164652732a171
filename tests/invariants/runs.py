"""Short whole PPO runs, and what two runs must have in common.

Runs that compute the same numbers in another order (fp32, relative error of one sum about 1e-6) differ a little
more from step to step: Adam divides each gradient by its own size, so that an error of 1e-7 in a gradient of 1e-5
moves a weight by a hundredth of the learning rate. Two steps are 8 optimizer steps here; CLOSE is what that allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from align.ppo.rollouts import Row
from align.ppo.step import PPO
from align.roles.roles import Roles
from align.types import Rollout, Scored

RATE = 3e-3
CLOSE = {"rel": 1e-3, "abs": 1e-5}
FAR = 0.02
"""How far weights may be apart after a run, as a share of RATE."""
COMPARED = (
    "loss/policy_avg", "loss/value_avg", "grad_norm/actor", "grad_norm/critic", "objective/kl", "objective/scores",
    "policy/entropy_avg", "policy/approxkl_avg", "val/ratio", "val/length", "val/optimizer_steps",
)  # fmt: skip
SETUPS = ("own", "adapter", "head", "full", "full_head")
"""LoRA with a critic of each kind, then full fine-tuning of actor and critic, and with a head on the trunk."""


class Even:
    """Share of even token ids: it differs from row to row and does not reward length."""

    wants = frozenset()

    def __call__(self, rollout, texts, state):
        liked = (rollout.response_ids_BT % 2 == 0) & rollout.response_mask_BT
        return Scored(liked.sum(1) / rollout.response_mask_BT.sum(1).clamp(min=1), {})


@dataclass
class Run:
    """What became of a few PPO steps."""

    metrics: list[dict[str, float]]
    rollouts: list[Rollout]
    weights: dict[str, Tensor]


def play(ppo: PPO, rows: list[Row], steps: int = 2, between=lambda: None) -> Run:
    """`steps` steps on the same rows; `between` is called before each and at the end."""
    metrics, rollouts = [], []
    for _ in range(steps):
        between()
        metrics.append(ppo.step(rows))
        rollouts.append(ppo.last[0])
    between()
    return Run(metrics, rollouts, trained(ppo.roles))


def trained(roles: Roles) -> dict[str, Tensor]:
    """A copy of every weight that trains, by role and number in it."""
    parts = {role: group.engine.module.trained(role) for group in roles.groups for role in group.trained}
    return {f"{role}/{i}": p.detach().clone() for role, params in parts.items() for i, p in enumerate(params)}


def check_same_tokens(one: Run, other: Run) -> None:
    for a, b in zip(one.rollouts, other.rollouts, strict=True):
        assert torch.equal(a.response_ids_BT, b.response_ids_BT)
        assert torch.equal(a.response_mask_BT, b.response_mask_BT)


def check_same_numbers(one: Run, other: Run) -> None:
    for step, (a, b) in enumerate(zip(one.metrics, other.metrics, strict=True), start=1):
        for name in COMPARED:
            assert a[name] == pytest.approx(b[name], **CLOSE), f"{name} in step {step}"
    for name, weight in one.weights.items():
        torch.testing.assert_close(weight, other.weights[name], rtol=0, atol=FAR * RATE, msg=lambda m, n=name: n + m)


def check_alike(one: Run, other: Run) -> None:
    """The same tokens; losses, norms and KL within CLOSE; weights within FAR of a learning rate."""
    check_same_tokens(one, other)
    check_same_numbers(one, other)


def check_identical(one: Run, other: Run) -> None:
    """The same to the bit, but for what the clock says."""
    check_same_tokens(one, other)
    for a, b in zip(one.metrics, other.metrics, strict=True):
        assert untimed(a) == untimed(b)
    assert all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {n: v for n, v in metrics.items() if not n.startswith(("seconds/", "tokens_per_second"))}


def all_finite(run: Run) -> bool:
    numbers = [value for metrics in run.metrics for value in metrics.values()]
    return bool(torch.tensor(numbers).isfinite().all()) and all(bool(w.isfinite().all()) for w in run.weights.values())
