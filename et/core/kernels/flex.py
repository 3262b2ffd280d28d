"""Attention between all pairs on a GPU: two passes of fused attention, without storing an attention matrix.

The first term is conventional attention whose values are the keys. The second, V_B = sum_C P_CB Q_C, is an attention as
well, with queries and keys exchanged: its scores are those of the first minus each query's logsumexp l_C,

    V_B = sum_C exp(s_CB - l_C) Q_C = exp(L_B) sum_C softmax_C(s_CB - l_C) Q_C,   L_B = logsumexp_C(s_CB - l_C),

where exp(L_B), the attention that key B receives, is at most N. Gradients pass through outputs, logsumexps and the
bias. torch's FlexAttention computes both passes. It has no backward pass on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor]]


def attention(qk: Tensor, beta: Tensor, self_attention: bool = False, attend: Attend | None = None) -> Tensor:
    """Both terms of the update, like :func:`et.core.kernels.dense.attention`: (..., N, 2, H, Y) -> the same."""
    attend = attend or compiled_attend
    by_head = qk.reshape(-1, *qk.shape[-4:]).permute(2, 0, 3, 1, 4)  # (2, samples, H, N, Y)
    q, k = by_head.unbind(0)
    scaled = q * beta.to(q.dtype)[:, None, None]
    u, of_query = attend(scaled, k, k, None, self_attention)
    mean, of_key = attend(k, scaled, q, -of_query, self_attention)
    v = mean * of_key.exp().to(mean.dtype)[..., None]
    return torch.stack([u, v]).permute(1, 3, 0, 2, 4).reshape(qk.shape)


def suits(qk: Tensor) -> bool:
    """True if FlexAttention takes ``qk`` and torch need not be deterministic.

    The gradient of the bias is added up in no particular order.
    """
    return not torch.are_deterministic_algorithms_enabled() and supports(qk)


def supports(qk: Tensor) -> bool:
    """True if FlexAttention can compute ``qk``: on a GPU, in float32 or less, with heads that fill its tiles."""
    return qk.is_cuda and qk.dtype != torch.float64 and qk.shape[-1] >= 16 and _has_flex()


@cache
def _has_flex() -> bool:
    try:
        import triton  # noqa: F401
        from torch.nn.attention.flex_attention import AuxRequest, flex_attention  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def compiled_attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, diagonal: bool
) -> tuple[Tensor, Tensor]:  # pragma: no cover (GPU)
    # Each shape, with bias or without, is compiled by itself. Beyond the limit torch stores whole attention matrices.
    with torch._dynamo.config.patch(recompile_limit=64):
        return flex_attend(q, k, v, bias, diagonal, _compiled_flex())


def flex_attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, diagonal: bool, flex: Callable[..., Any] | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T + bias) v and its logsumexp.

    Args:
        q, k, v: Queries, keys and values, (B, H, N, Y).
        bias: Bias of each key, (B, H, N), or None.
        diagonal: If False, a token is not among its own keys.
        flex: Compiled FlexAttention. If None, torch's uncompiled one.

    Returns:
        (B, H, N, Y) and (B, H, N).
    """
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    def score(value: Tensor, sample: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        if bias is not None:
            value = value + bias[sample, head, column]
        return value if diagonal else torch.where(row == column, -torch.inf, value)

    attend: Callable[..., Any] = flex or flex_attention
    out, aux = attend(q, k, v, score_mod=score, scale=1.0, return_aux=AuxRequest(lse=True))
    return out, aux.lse
