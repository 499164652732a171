"""Log-probabilities and entropy straight from hidden states and the head, without N x V logits beside their gradient.

The idea is Liger Kernel's and TRL's fused heads (trl/trainer, `add_fused_lm_head`): the head's product, the
softmax and their backward in one function. What differs: only the tokens of `target`; where the head is
frozen, the gradient to the hidden states is a by-product of the forward pass; where it trains, the probabilities
stand in the logits' place until backward turns them into their gradient.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear

KEEP_BYTES = 2**26
"""Probabilities up to this size, or the weight's, wait for backward; larger ones are computed again: a product more,
and the weight's gradient summed over chunks, which takes more memory than is saved below that (docs/log.md)."""
CHUNK_BYTES = 2**26
"""Logits that exist at a time where they are not kept; fewer rows make the products slow at large vocabularies."""
BLOCK_BYTES = 2**21
"""Rows whose softmax is taken at a time: they stay in the cache."""


def head_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    ids_N: Tensor,
    temperature: float = 1.0,
    bias_V: Tensor | None = None,
    with_entropy: bool = True,
    keep: bool | None = None,
    matmul: Callable[[Tensor, Tensor], Tensor] = linear,
) -> tuple[Tensor, Tensor | None]:
    """logp_N of tokens `ids_N`, and entropy_N of what they were drawn from, float32, at a temperature.

    The same numbers as `logprobs` and `entropy` of the logits `hidden @ weight.T + bias`; the entropy is a
    metric, without gradient. The products are in the hidden states' dtype, sums and softmax in float32 (float64
    for float64). Under autocast, which is off inside, hand in hidden states in the dtype that is wanted.

    `keep`: whether probabilities wait for backward in N x V (None: where they are small; a frozen head
    never needs them). `matmul(x_AK, y_BK)` is x @ y.T without autograd: `engine.linear.matmul_of(head)`.

    Raises ValueError for a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: a log-probability needs a temperature above 0")
    with torch.autocast(hidden_ND.device.type, enabled=False):
        logp_N, entropy_N = _HeadLogprobs.apply(
            hidden_ND, weight_VD, bias_V, ids_N, temperature, with_entropy, keep, matmul
        )
    return logp_N, entropy_N if with_entropy else None


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, ids_N, temperature, with_entropy, keep, matmul):
        ctx.temperature, ctx.matmul, ctx.probabilities, ctx.slope_ND = temperature, matmul, None, None
        wide = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        logp_N = torch.empty(len(ids_N), dtype=wide, device=hidden_ND.device)
        entropy_N = torch.empty_like(logp_N)
        ctx.mark_non_differentiable(entropy_N)
        wants_hidden, *wants_head = ctx.needs_input_grad[:3]
        step = len(weight_VD) * logp_N.element_size()
        kept_bytes = len(ids_N) * step
        keep = any(wants_head) and (kept_bytes <= max(KEEP_BYTES, weight_VD.nbytes) if keep is None else keep)
        if wants_hidden and not any(wants_head):
            ctx.slope_ND = torch.empty_like(hidden_ND)
        elif any(wants_head):
            ctx.save_for_backward(hidden_ND, weight_VD, bias_V, ids_N)
        weight_VD = weight_VD.to(hidden_ND.dtype)
        for rows in [slice(0, len(ids_N))] if keep else _chunks(len(ids_N), step, CHUNK_BYTES):
            logits_CV = _logits(hidden_ND[rows], weight_VD, bias_V, temperature, matmul)
            stands = keep or ctx.slope_ND is not None
            _softmax(logits_CV, ids_N[rows], logp_N[rows], entropy_N[rows], with_entropy, bias_V is not None, stands)
            if keep:
                ctx.probabilities = logits_CV
            elif ctx.slope_ND is not None:
                slope_CV = _slope(logits_CV, ids_N[rows], torch.full_like(logp_N[rows], 1 / temperature))
                ctx.slope_ND[rows] = matmul(slope_CV.to(hidden_ND.dtype), weight_VD.t())
        return logp_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_N, _):
        if ctx.slope_ND is not None:
            return (grad_N[:, None] * ctx.slope_ND).to(ctx.slope_ND.dtype), *[None] * 7
        hidden_ND, weight_VD, bias_V, ids_N = ctx.saved_tensors
        matmul, dtype = ctx.matmul, hidden_ND.dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight = grad_bias = None
        kept, ctx.probabilities = ctx.probabilities, None  # written over: a second backward computes them again
        step = grad_N.element_size() * len(weight_VD)
        low_VD = weight_VD.to(dtype)
        for rows in _chunks(len(ids_N), step, CHUNK_BYTES) if kept is None else [slice(0, len(ids_N))]:
            p_CV = kept
            if p_CV is None:
                p_CV = _logits(hidden_ND[rows], low_VD, bias_V, ctx.temperature, matmul)
                for block in _chunks(len(p_CV), step, BLOCK_BYTES):
                    p_CV[block] = p_CV[block].softmax(-1)
            slope_CV = _slope(p_CV, ids_N[rows], grad_N[rows] / ctx.temperature)
            if wants_bias:
                grad_bias = _plus(grad_bias, slope_CV.sum(0))
            slope_CV = slope_CV.to(dtype)
            if wants_hidden:
                grad_hidden[rows] = matmul(slope_CV, low_VD.t())
            if wants_weight:
                grad_weight = _plus(grad_weight, matmul(slope_CV.t(), hidden_ND[rows].t()).to(weight_VD.dtype))
        if len(ids_N) == 0:
            grad_weight = torch.zeros_like(weight_VD) if wants_weight else None
            grad_bias = torch.zeros_like(bias_V) if wants_bias else None
        return grad_hidden, grad_weight, grad_bias.to(bias_V.dtype) if wants_bias else None, *[None] * 5


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature: float, matmul) -> Tensor:
    logits_CV = matmul(hidden_CD, weight_VD)
    if logits_CV.dtype not in (torch.float32, torch.float64):
        logits_CV = logits_CV.float()
    if bias_V is not None:
        logits_CV += bias_V
    return logits_CV.div_(temperature) if temperature != 1.0 else logits_CV


def _softmax(
    logits_CV: Tensor,
    ids_C: Tensor,
    logp_C: Tensor,
    entropy_C: Tensor,
    with_entropy: bool,
    infinite: bool,
    stands: bool,
) -> None:
    """Fills logp_C and entropy_C; then, where it `stands`, logits_CV holds the probabilities."""
    for rows in _chunks(len(logits_CV), logits_CV.element_size() * logits_CV.shape[1], BLOCK_BYTES):
        x_RV = logits_CV[rows]
        chosen_R = x_RV.gather(1, ids_C[rows, None]).squeeze(1)
        if not (with_entropy or stands):
            logp_C[rows] = chosen_R - x_RV.logsumexp(-1)
            continue
        p_RV = x_RV.softmax(-1)
        # The largest probability is at least 1/V, so its log loses nothing; a logsumexp would take two passes more.
        total_R = x_RV.amax(-1) - p_RV.amax(-1).log()
        logp_C[rows] = chosen_R - total_R
        if with_entropy:
            finite_RV = x_RV.masked_fill(x_RV == -torch.inf, 0.0) if infinite else x_RV
            entropy_C[rows] = total_R - torch.linalg.vecdot(p_RV, finite_RV)
        if stands:
            x_RV.copy_(p_RV)


def _slope(p_CV: Tensor, ids_C: Tensor, grad_C: Tensor) -> Tensor:
    """Turns probabilities, in place, into grad * (one at the token - p): the gradient to the logits."""
    p_CV.mul_(-grad_C[:, None])
    return p_CV.scatter_add_(1, ids_C[:, None], grad_C[:, None])


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _chunks(rows: int, row_bytes: int, most: int) -> Iterator[slice]:
    size = max(1, most // row_bytes)
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))
