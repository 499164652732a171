"""KL estimators. float32; tolerance 1e-6 for numbers near 1, exact where a clamp decides."""

import math

import pytest
import torch
from torch.testing import assert_close

from align import ops


def test_the_estimators_by_hand():
    # p = 1/2, q = 1/4: log p/q = log 2, (log 2)^2 / 2, and 1/2 - 1 + log 2.
    logp, ref_logp = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    expected = {"k1": math.log(2), "k2": math.log(2) ** 2 / 2, "k3": -0.5 + math.log(2)}
    for estimator, value in expected.items():
        assert_close(ops.kl(logp, ref_logp, estimator), torch.tensor([value]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_equal_policies_have_no_divergence(estimator):
    logp = torch.tensor([[-1.0, -20.0, -0.001]])
    assert torch.equal(ops.kl(logp, logp.clone(), estimator), torch.zeros(1, 3))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    q = torch.tensor([0.25, 0.25, 0.4, 0.1], dtype=torch.float64)
    expectation = (p * ops.kl(p.log(), q.log(), estimator)).sum()
    # The estimator itself is float32.
    assert_close(expectation, (p * (p / q).log()).sum(), rtol=0, atol=1e-6)


def test_k3_is_never_negative():
    logp = -10 * torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert (ops.kl(logp, logp.flip(0), "k3") >= 0).all()


def test_k3_keeps_the_digits_of_a_small_ratio():
    # exp(x) - 1 - x near x^2 / 2; the log-ratio of float32 numbers near 1e-3 is good to 1e-4 of itself.
    tiny = ops.kl(torch.tensor([0.0]), torch.tensor([1e-3]), "k3")
    assert_close(tiny, torch.tensor([5.0017e-7]), rtol=1e-2, atol=0)


def test_k3_is_clamped_and_k1_k2_are_not():
    logp, ref_logp = torch.tensor([-200.0, 0.0]), torch.tensor([0.0, -200.0])
    assert ops.kl(logp, ref_logp, "k3").tolist() == [10.0, 10.0]
    assert ops.kl(logp, ref_logp, "k1").tolist() == [-200.0, 200.0]
    assert ops.kl(logp, ref_logp, "k2").tolist() == [20000.0, 20000.0]


def test_another_estimator_is_refused():
    with pytest.raises(ValueError, match=r"k4.*k1, k2, k3"):
        ops.kl(torch.zeros(1), torch.zeros(1), "k4")


@pytest.mark.parametrize(("estimator", "reverse"), [("k2", False), ("k3", True)])
def test_the_gradient_in_a_loss_is_that_of_a_kl_in_one_direction(estimator, reverse):
    """Exact expectations over four tokens, of samples that are not differentiated; float32 inside the estimator."""
    logits = torch.tensor([0.5, -0.3, 1.2, 0.0], dtype=torch.float64, requires_grad=True)
    logq = torch.tensor([-0.4, 0.8, 0.1, 0.3], dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    mean = (logp.exp().detach() * ops.kl(logp, logq, estimator)).sum()
    (found,) = torch.autograd.grad(mean, logits, retain_graph=True)
    exact = (logq.exp() * (logq - logp)).sum() if reverse else (logp.exp() * (logp - logq)).sum()
    (expected,) = torch.autograd.grad(exact, logits)
    assert_close(found, expected, rtol=0, atol=1e-6)
