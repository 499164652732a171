"""head_logprobs against logprobs and entropy of materialised logits.

float32 sums in another order: tolerance 1e-5, a few units in the last place of numbers below 20; bfloat16
products on both sides: equal logits, so the same.
"""

import math
import sys

import pytest
import torch
from torch.profiler import profile
from torch.testing import assert_close

from align import ops
from align.engine.linear import fast_matmul

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
N, D, V = 37, 16, 101
MODULE = sys.modules["align.ops.head_logprobs"]


def inputs(n=N, d=D, v=V, dtype=torch.float32, frozen=False):
    g = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight_VD = torch.randn(v, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_(not frozen)
    bias_V = torch.randn(v, generator=g, dtype=torch.float64).to(dtype).requires_grad_(not frozen)
    return hidden_ND, weight_VD, bias_V, torch.randint(v, (n,), generator=g)


def slow(hidden_ND, weight_VD, ids_N, temperature=1.0, bias_V=None):
    logits_NV = hidden_ND @ weight_VD.t()
    logits_NV = logits_NV if bias_V is None else logits_NV + bias_V
    entropy_N = ops.entropy(logits_NV[None].detach() / temperature)[0]
    return ops.logprobs(logits_NV[None], ids_N[None], temperature)[0], entropy_N


@pytest.fixture(params=[None, 4 * V, 4 * V * 5], ids=["one chunk", "a row", "five rows"])
def chunks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(MODULE, "CHUNK_BYTES", request.param)
        monkeypatch.setattr(MODULE, "BLOCK_BYTES", request.param)


@pytest.mark.parametrize("matmul", [torch.nn.functional.linear, fast_matmul], ids=["torch", "onednn"])
@pytest.mark.parametrize("keep", [True, False, None])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("biased", [True, False])
def test_numbers_and_gradients_are_those_of_materialised_logits(chunks, matmul, keep, frozen, temperature, biased):
    hidden_ND, weight_VD, bias_V, ids_N = inputs(frozen=frozen)
    leaves = [hidden_ND] if frozen else [hidden_ND, weight_VD, *[bias_V] * biased]
    bias_V = bias_V if biased else None
    pull_N = torch.linspace(-1, 1, N)
    logp_N, entropy_N = ops.head_logprobs(hidden_ND, weight_VD, ids_N, temperature, bias_V, keep=keep, matmul=matmul)
    expected_N, entropy_expected_N = slow(hidden_ND, weight_VD, ids_N, temperature, bias_V)
    assert_close(logp_N, expected_N, **TOLERANCE)
    assert_close(entropy_N, entropy_expected_N, **TOLERANCE)
    assert not entropy_N.requires_grad
    ours = torch.autograd.grad((logp_N * pull_N).sum(), leaves)
    theirs = torch.autograd.grad((expected_N * pull_N).sum(), leaves)
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, **TOLERANCE)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_pass_gradcheck_in_float64(keep, frozen):
    """gradcheck asks for backward many times: kept probabilities serve once, and are computed again."""
    hidden_ND, weight_VD, bias_V, ids_N = inputs(4, 3, 7, torch.float64, frozen)
    assert torch.autograd.gradcheck(
        lambda h, w, b: ops.head_logprobs(h, w, ids_N, 0.7, b, keep=keep)[0], (hidden_ND, weight_VD, bias_V)
    )


@pytest.mark.parametrize("keep", [True, False])
def test_a_trained_head_on_detached_hidden_states_gets_its_gradient(keep):
    hidden_ND, weight_VD, _, ids_N = inputs()
    for function in (ops.head_logprobs, slow):
        logp_N = function(hidden_ND.detach(), weight_VD, ids_N, **({"keep": keep} if function is not slow else {}))[0]
        logp_N.sum().backward()
        if function is ops.head_logprobs:
            first, weight_VD.grad = weight_VD.grad, None
    assert_close(first, weight_VD.grad, **TOLERANCE)


@pytest.mark.parametrize("frozen", [True, False])
def test_bfloat16_products_give_float32_numbers(frozen):
    """Gradients in bfloat16: 8 bits, so 1/64 of the largest."""
    hidden_ND, weight_VD, _, ids_N = inputs(dtype=torch.bfloat16, frozen=frozen)
    logp_N, entropy_N = ops.head_logprobs(hidden_ND, weight_VD, ids_N)
    expected_N, entropy_expected_N = slow(hidden_ND, weight_VD, ids_N)
    assert logp_N.dtype == entropy_N.dtype == torch.float32
    assert_close(logp_N, expected_N, **TOLERANCE)
    assert_close(entropy_N, entropy_expected_N, **TOLERANCE)
    leaves = [hidden_ND] if frozen else [hidden_ND, weight_VD]
    for mine, other in zip(torch.autograd.grad(logp_N.sum(), leaves), torch.autograd.grad(expected_N.sum(), leaves)):
        assert mine.dtype == torch.bfloat16
        assert_close(mine, other, rtol=0, atol=float(other.abs().max()) / 64)


def test_float32_weights_meet_bfloat16_hidden_states_under_autocast():
    hidden_ND, weight_VD, _, ids_N = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        expected_N = ops.logprobs(torch.nn.functional.linear(hidden_ND, weight_VD)[None], ids_N[None])[0]
        logp_N, _ = ops.head_logprobs(hidden_ND.bfloat16(), weight_VD, ids_N)
    assert_close(logp_N, expected_N, **TOLERANCE)
    logp_N.sum().backward()
    assert weight_VD.grad.dtype == torch.float32


@pytest.mark.parametrize("keep", [True, False, None])
@pytest.mark.parametrize("frozen", [True, False])
def test_no_tokens_give_no_numbers_and_no_gradient(keep, frozen):
    hidden_ND, weight_VD, bias_V, ids_N = inputs(0, frozen=frozen)
    logp_N, entropy_N = ops.head_logprobs(hidden_ND, weight_VD, ids_N, 1.0, bias_V, keep=keep)
    assert logp_N.shape == entropy_N.shape == (0,)
    logp_N.sum().backward()
    assert hidden_ND.grad.shape == (0, D)
    assert frozen or (weight_VD.grad.count_nonzero() == 0 and bias_V.grad.shape == (V,))


def test_a_token_that_cannot_be_sampled_adds_no_entropy():
    bias_V = torch.tensor([0.0, 0.0, -torch.inf])
    logp_N, entropy_N = ops.head_logprobs(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([1]), bias_V=bias_V)
    assert_close(torch.stack([-logp_N, entropy_N]), torch.full((2, 1), math.log(2)), rtol=0, atol=1e-6)


def test_huge_logits_are_finite():
    logp_N, entropy_N = ops.head_logprobs(torch.tensor([[1e4]]), torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    assert (logp_N.item(), entropy_N.item()) == (-2e4, 0.0)


def test_entropy_is_left_out_where_it_is_not_wanted():
    hidden_ND, weight_VD, _, ids_N = inputs()
    logp_N, entropy_N = ops.head_logprobs(hidden_ND, weight_VD, ids_N, with_entropy=False)
    assert entropy_N is None
    assert_close(logp_N, slow(hidden_ND, weight_VD, ids_N)[0], **TOLERANCE)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_not_above_zero_is_refused(temperature):
    hidden_ND, weight_VD, _, ids_N = inputs()
    with pytest.raises(ValueError, match="temperature"):
        ops.head_logprobs(hidden_ND, weight_VD, ids_N, temperature)


@pytest.mark.parametrize(
    "keep, frozen, matrices", [(True, False, 1), (False, False, 0), (None, True, 0)], ids=["kept", "again", "frozen"]
)
def test_an_n_times_v_matrix_is_allocated_at_most_once(monkeypatch, keep, frozen, matrices):
    n, v = 256, 4096
    monkeypatch.setattr(MODULE, "CHUNK_BYTES", n * v // 2)
    monkeypatch.setattr(MODULE, "BLOCK_BYTES", n * v // 8)
    hidden_ND, weight_VD, _, ids_N = inputs(n, 8, v, frozen=frozen)
    with profile(profile_memory=True) as profiled:
        ops.head_logprobs(hidden_ND, weight_VD, ids_N, keep=keep)[0].sum().backward()
    sizes = [e.nbytes() for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert len([size for size in sizes if size >= 4 * n * v]) == matrices
    assert max(sizes) <= 4 * n * v
