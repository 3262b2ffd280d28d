"""Attention between all pairs on a GPU, in Triton: both terms and their gradients, no map in memory, no atomics.

Each program owns a block of tokens of one head of one sample. Forward, a pass over the keys of each query makes U = P K
and the logsumexp l of its scores, and a pass over the queries of each key makes V = P^T Q with P = exp(scores - l).
Backward, the same two passes compute P again (formulas in kernels_dense.py): the queries' pass first sums P V', which
gives D = rowsum(P * dP), then dQ; the keys' pass makes dK. Sums are in float32 and in a fixed order, so results are the
same from run to run as long as the block sizes are (see :func:`et.core.kernels.triton_runtime.launch`).

Products of N x N x Y: 2 + 2 forward and 6 + 5 backward. With stored matrices 3 forward and 6 backward would do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

from et.core.kernels.triton_runtime import launch, on_its_device
from et.core.precision import differentiable_gradient

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = range(16, 129)  # head dimensions Y: a product has 16 at least, and blocks of more do not fit the registers
FORWARD = [
    triton.Config({"BLOCK_R": r, "BLOCK_C": c}, num_warps=w, num_stages=s)
    for r, c, w, s in ((64, 64, 4, 2), (128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (64, 32, 4, 3))
]
BACKWARD = [
    triton.Config({"BLOCK_R": r, "BLOCK_C": c}, num_warps=w, num_stages=s)
    for r, c, w, s in ((64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 8, 2), (128, 32, 8, 2), (128, 64, 8, 2))
]


# Rows are the tokens that a program owns, columns those that it loops over. In (samples, N, 2, H, Y) queries lie at
# role 0 and keys at role 1, as their terms and gradients do. Offsets within a sample have 32 bits: 64 spill registers.


@triton.jit
def _tokens(x, sample, role: tl.constexpr, h, first, tokens, heads, width, BLOCK: tl.constexpr, BLOCK_Y: tl.constexpr):
    """x[sample, first : first + BLOCK, role, h]: (BLOCK, BLOCK_Y), zero beyond tokens and width."""
    n, y = first + tl.arange(0, BLOCK), tl.arange(0, BLOCK_Y)
    start = x + ((sample * tokens * 2 + role) * heads + h) * width
    return tl.load(
        start + (n * 2 * heads * width)[:, None] + y[None, :],
        mask=(n < tokens)[:, None] & (y < width)[None, :],
        other=0.0,
    )


@triton.jit
def _store_tokens(
    x, value, sample, role: tl.constexpr, h, first, tokens, heads, width, BLOCK: tl.constexpr, BLOCK_Y: tl.constexpr
):
    n, y = first + tl.arange(0, BLOCK), tl.arange(0, BLOCK_Y)
    place = x + ((sample * tokens * 2 + role) * heads + h) * width + (n * 2 * heads * width)[:, None] + y[None, :]
    tl.store(place, value.to(x.dtype.element_ty), mask=(n < tokens)[:, None] & (y < width)[None, :])


@triton.jit
def _dot(left, right, DOT: tl.constexpr):
    """left @ right in float32. ``upcast`` is for the interpreter, which has no products of bfloat16."""
    if DOT == "upcast":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right, input_precision=DOT)


@triton.jit
def _program(tokens, heads, BLOCK_R: tl.constexpr):
    """This program's sample, head and first row; the blocks of a head are neighbours, so that they share a cache."""
    blocks = tl.cdiv(tokens, BLOCK_R)
    block, sample_head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    return (sample_head // heads).to(tl.int64), sample_head % heads, block * BLOCK_R


@triton.jit
def _pairs(r0, c0, tokens, SELF: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which pairs of a row and a column attend to each other, (BLOCK_R, BLOCK_C)."""
    r, c = r0 + tl.arange(0, BLOCK_R), c0 + tl.arange(0, BLOCK_C)
    pairs = (r < tokens)[:, None] & (c < tokens)[None, :]
    return pairs if SELF else pairs & (r[:, None] != c[None, :])


@triton.jit
def query_term_kernel(
    qk, beta, out, lse, tokens, heads, width,
    SELF: tl.constexpr, DOT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    """U and l of a block of queries."""
    sample, h, r0 = _program(tokens, heads, BLOCK_R)
    b = tl.load(beta + h)
    r = r0 + tl.arange(0, BLOCK_R)
    q = _tokens(qk, sample, 0, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)
    largest = tl.full((BLOCK_R,), float("-inf"), dtype=tl.float32)
    norm, sums = tl.zeros((BLOCK_R,), dtype=tl.float32), tl.zeros((BLOCK_R, BLOCK_Y), dtype=tl.float32)
    for c0 in range(0, tokens, BLOCK_C):
        k = _tokens(qk, sample, 1, h, c0, tokens, heads, width, BLOCK_C, BLOCK_Y)
        scores = _dot(q, tl.trans(k), DOT) * b
        scores = tl.where(_pairs(r0, c0, tokens, SELF, BLOCK_R, BLOCK_C), scores, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)  # a row beyond the tokens has no key
        p, shrink = tl.exp(scores - shift[:, None]), tl.exp(largest - shift)
        norm = norm * shrink + tl.sum(p, 1)
        sums = sums * shrink[:, None] + _dot(p.to(k.dtype), k, DOT)
        largest = new
    norm = tl.where(r < tokens, norm, 1.0)
    tl.store(lse + (sample * heads + h) * tokens + r, largest + tl.log(norm), mask=r < tokens)
    _store_tokens(out, sums / norm[:, None], sample, 0, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)


@triton.jit
def key_term_kernel(
    qk, beta, out, lse, tokens, heads, width,
    SELF: tl.constexpr, DOT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    """V of a block of keys."""
    sample, h, r0 = _program(tokens, heads, BLOCK_R)
    b = tl.load(beta + h)
    k = _tokens(qk, sample, 1, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)
    sums = tl.zeros((BLOCK_R, BLOCK_Y), dtype=tl.float32)
    for c0 in range(0, tokens, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        q = _tokens(qk, sample, 0, h, c0, tokens, heads, width, BLOCK_C, BLOCK_Y)
        at_query = tl.load(lse + (sample * heads + h) * tokens + c, mask=c < tokens, other=0.0)
        scores = _dot(k, tl.trans(q), DOT) * b - at_query[None, :]
        p = tl.exp(tl.where(_pairs(r0, c0, tokens, SELF, BLOCK_R, BLOCK_C), scores, float("-inf")))
        sums += _dot(p.to(q.dtype), q, DOT)
    _store_tokens(out, sums, sample, 1, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)


@triton.jit
def query_gradient_kernel(
    qk, beta, out, lse, grad, grad_qk, mean, grad_beta, tokens, heads, width,
    SELF: tl.constexpr, DOT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    """dQ and D of a block of queries, and what each of them adds to the gradient of beta."""
    sample, h, r0 = _program(tokens, heads, BLOCK_R)
    b = tl.load(beta + h)
    r = r0 + tl.arange(0, BLOCK_R)
    at_row = (sample * heads + h) * tokens + r
    q = _tokens(qk, sample, 0, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)
    grad_u = _tokens(grad, sample, 0, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)
    u = _tokens(out, sample, 0, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)
    l = tl.load(lse + at_row, mask=r < tokens, other=0.0)  # noqa: E741
    values = tl.zeros((BLOCK_R, BLOCK_Y), dtype=tl.float32)  # P V'
    for c0 in range(0, tokens, BLOCK_C):
        k = _tokens(qk, sample, 1, h, c0, tokens, heads, width, BLOCK_C, BLOCK_Y)
        grad_v = _tokens(grad, sample, 1, h, c0, tokens, heads, width, BLOCK_C, BLOCK_Y)
        scores = _dot(q, tl.trans(k), DOT) * b - l[:, None]
        p = tl.exp(tl.where(_pairs(r0, c0, tokens, SELF, BLOCK_R, BLOCK_C), scores, float("-inf")))
        values += _dot(p.to(k.dtype), grad_v, DOT)
    average = tl.sum(grad_u.to(tl.float32) * u.to(tl.float32) + q.to(tl.float32) * values, 1)
    sums = tl.zeros((BLOCK_R, BLOCK_Y), dtype=tl.float32)  # dS K
    for c0 in range(0, tokens, BLOCK_C):
        k = _tokens(qk, sample, 1, h, c0, tokens, heads, width, BLOCK_C, BLOCK_Y)
        grad_v = _tokens(grad, sample, 1, h, c0, tokens, heads, width, BLOCK_C, BLOCK_Y)
        scores = _dot(q, tl.trans(k), DOT) * b - l[:, None]
        p = tl.exp(tl.where(_pairs(r0, c0, tokens, SELF, BLOCK_R, BLOCK_C), scores, float("-inf")))
        slope = _dot(grad_u, tl.trans(k), DOT) + _dot(q, tl.trans(grad_v), DOT)
        sums += _dot((p * (slope - average[:, None])).to(k.dtype), k, DOT)
    tl.store(mean + at_row, average, mask=r < tokens)
    tl.store(grad_beta + at_row, tl.sum(q.to(tl.float32) * sums, 1), mask=r < tokens)
    _store_tokens(grad_qk, values + b * sums, sample, 0, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)


@triton.jit
def key_gradient_kernel(
    qk, beta, lse, grad, grad_qk, mean, tokens, heads, width,
    SELF: tl.constexpr, DOT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    """dK of a block of keys."""
    sample, h, r0 = _program(tokens, heads, BLOCK_R)
    b = tl.load(beta + h)
    k = _tokens(qk, sample, 1, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)
    grad_v = _tokens(grad, sample, 1, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)
    sums = tl.zeros((BLOCK_R, BLOCK_Y), dtype=tl.float32)
    for c0 in range(0, tokens, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        at_column = (sample * heads + h) * tokens + c
        q = _tokens(qk, sample, 0, h, c0, tokens, heads, width, BLOCK_C, BLOCK_Y)
        grad_u = _tokens(grad, sample, 0, h, c0, tokens, heads, width, BLOCK_C, BLOCK_Y)
        l = tl.load(lse + at_column, mask=c < tokens, other=0.0)  # noqa: E741
        average = tl.load(mean + at_column, mask=c < tokens, other=0.0)
        scores = _dot(k, tl.trans(q), DOT) * b - l[None, :]
        p = tl.exp(tl.where(_pairs(r0, c0, tokens, SELF, BLOCK_R, BLOCK_C), scores, float("-inf")))
        slope = _dot(k, tl.trans(grad_u), DOT) + _dot(grad_v, tl.trans(q), DOT)
        change = b * p * (slope - average[None, :])
        sums += _dot(change.to(q.dtype), q, DOT)
        sums += _dot(p.to(q.dtype), grad_u, DOT)
    _store_tokens(grad_qk, sums, sample, 1, h, r0, tokens, heads, width, BLOCK_R, BLOCK_Y)


def supports(qk: Tensor) -> bool:
    """True if the kernels take dtype, head dimension and number of tokens of ``qk``."""
    of_sample = math.prod(qk.shape[-4:])
    return qk.dtype in DTYPES and qk.shape[-1] in WIDTHS and 0 < of_sample < 2**31 and qk.numel() > 0


def attention(qk: Tensor, beta: Tensor, self_attention: bool = False) -> Tensor:
    """Both terms of the update, like :func:`et.core.kernels.dense.attention`: (..., N, 2, H, Y) -> the same.

    Products of float32 operands follow ``torch.set_float32_matmul_precision``.
    """
    return _Attention.apply(qk, beta, self_attention)


@on_its_device
def _launch(qk: Tensor, kernel: Any, configs: list, *tensors: Tensor, self_attention: bool) -> None:
    """Launch ``kernel`` on all blocks of tokens, heads and samples of ``qk``."""
    tokens, _, heads, width = qk.shape[-4:]
    samples = qk.numel() // (tokens * 2 * heads * width)
    exact = qk.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    precision = ("ieee" if exact else "tf32") if isinstance(kernel, triton.JITFunction) else "upcast"
    launch(
        kernel, lambda meta: (triton.cdiv(tokens, meta["BLOCK_R"]) * samples * heads,), *tensors, tokens, heads, width,
        configs=configs, key=("tokens", "heads", "width"), SELF=self_attention, DOT=precision,
        BLOCK_Y=triton.next_power_of_2(width),
    )  # fmt: skip


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, qk: Tensor, beta: Tensor, self_attention: bool) -> Tensor:
        operands = qk.contiguous()
        out, scale = torch.empty_like(operands), beta.float().contiguous()
        lse = scale.new_empty(qk.numel() // (2 * qk.shape[-1]))  # (samples, H, N), flat
        for kernel in (query_term_kernel, key_term_kernel):
            _launch(operands, kernel, FORWARD, operands, scale, out, lse, self_attention=self_attention)
        ctx.save_for_backward(qk, beta, out, lse)
        ctx.self_attention = self_attention
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        qk, beta, out, lse = ctx.saved_tensors
        options = {"self_attention": ctx.self_attention}
        if torch.is_grad_enabled():  # create_graph=True: this gradient will itself be differentiated
            from et.core.kernels.dense import plain_attention

            outputs = plain_attention(qk, beta, **options)
            return *differentiable_gradient(outputs, (qk, beta), ctx.needs_input_grad[:2], grad), None
        operands, grad, scale = qk.contiguous(), grad.to(qk.dtype).contiguous(), beta.float().contiguous()
        grad_qk, mean, grad_beta = torch.empty_like(operands), torch.empty_like(lse), torch.empty_like(lse)
        tensors = (operands, scale, out, lse, grad, grad_qk, mean, grad_beta)
        _launch(operands, query_gradient_kernel, BACKWARD, *tensors, **options)
        _launch(operands, key_gradient_kernel, BACKWARD, operands, scale, lse, grad, grad_qk, mean, **options)
        return grad_qk, grad_beta.view(-1, *qk.shape[-2:-1], qk.shape[-4]).sum((0, 2)).to(beta.dtype), None
