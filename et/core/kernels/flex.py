"""Attention between all pairs on a GPU: two passes of a fused attention, so that no map leaves the processor.

The first term is conventional attention with keys for values. The second, V_B = sum_C P_CB Q_C, is an attention as
well, with queries and keys exchanged: its scores are those of the first less each query's logsumexp l_C,

    V_B = sum_C exp(s_CB - l_C) Q_C = exp(L_B) sum_C softmax_C(s_CB - l_C) Q_C,   L_B = logsumexp_C(s_CB - l_C),

where exp(L_B), the attention that key B receives, is at most N. Gradients pass through outputs, logsumexps and the
bias. torch's FlexAttention computes both passes; it has no backward pass on a CPU, where :func:`plain_attend` takes its
place in the tests.
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
    """Whether FlexAttention computes ``qk``: on a GPU, in float32 or less, with heads that fill its tiles.

    Not where torch is to be deterministic: the gradient of the bias is added up in no particular order.
    """
    if torch.are_deterministic_algorithms_enabled():
        return False
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
    # Each shape, with bias or without, is compiled by itself. Beyond the limit torch goes over to whole maps.
    with torch._dynamo.config.patch(recompile_limit=64):
        return flex_attend(q, k, v, bias, diagonal, _compiled_flex())


def flex_attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, diagonal: bool, flex: Callable[..., Any] | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T + bias) v and its logsumexp: (B, H, N, Y) three times, bias of each key (B, H, N) -> the same two.

    Without ``diagonal`` a token is not among its own keys.
    """
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    def score(value: Tensor, sample: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        if bias is not None:
            value = value + bias[sample, head, column]
        return value if diagonal else torch.where(row == column, -torch.inf, value)

    attend: Callable[..., Any] = flex or flex_attention
    out, aux = attend(q, k, v, score_mod=score, scale=1.0, return_aux=AuxRequest(lse=True))
    return out, aux.lse


def plain_attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, diagonal: bool) -> tuple[Tensor, Tensor]:
    """The same with a whole map, differentiable on any device: what FlexAttention is held to."""
    scores = q @ k.mT if bias is None else q @ k.mT + bias[..., None, :]
    if not diagonal:
        scores = scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool, device=q.device), -torch.inf)
    total = torch.logsumexp(scores, dim=-1)
    return (scores - total[..., None]).exp() @ v, total
