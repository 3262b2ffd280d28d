"""Attention along edges on a GPU, in Triton: one program for each piece of a row and head, no atomics.

The algorithm is that of the numba kernels: the softmax P is computed again in every pass from q, k and two numbers a
query. Operands are float64, float32, bfloat16 or float16; sums are in float64 for float64, else in float32.

A row (the edges of a query, or of a key) is cut into pieces of at most ``triton_runtime.SPLIT`` edges, so that a hub
keeps many programs busy. A program writes the result of a row that is not cut. The pieces of a longer row are kept in
float32 and added up in order, so that results are the same from run to run.

Every edge multiplies vectors of its own, so tensor cores have no use here: bytes are the limit, and half precision
halves them. Without a GPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1 before triton is imported).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from et.core.csr import SortedEdges
from et.core.kernels import triton_edges as kernels
from et.core.kernels.triton_runtime import Pieces, launch, on_its_device, pieces_of

HALF_PRECISION = True  # query_term, key_term and attention_gradient take bfloat16 and float16 as they are
# Block sizes to choose from; the first is taken where nothing may be measured.
TUNED = [triton.Config({"BLOCK_E": e}, num_warps=w) for e, w in ((32, 4), (16, 1), (16, 2), (32, 2), (64, 4))]


def _launch(kernel: Any, programs: tuple[int, int], *args: Any, **constants: Any) -> None:
    key = ("heads", "width") if "width" in kernel.arg_names else ("heads",)
    launch(kernel, lambda meta: programs, *args, configs=TUNED, key=key, **constants)


def _block_y(width: int) -> int:
    return triton.next_power_of_2(max(1, width))


def _cut(pieces: Pieces) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """What a kernel has to know about its pieces."""
    return pieces.start, pieces.row, pieces.low, pieces.slot, pieces.split


def _sum_kernel(kernel: Any, out: Tensor, tensors: tuple, pieces: Pieces, index: tuple, **constants: Any) -> Tensor:
    """Run a kernel that fills ``out`` (N, H, Y) with sums over rows, and add up the pieces of rows that are cut."""
    if out.numel():
        dtype = torch.promote_types(out.dtype, torch.float32)
        partial = out.new_empty(pieces.slots, *out.shape[1:], dtype=dtype)
        arguments = (*tensors, *_cut(pieces), *index, out, partial, *out.shape[1:])
        _launch(kernel, (len(pieces.row), out.shape[1]), *arguments, BLOCK_Y=_block_y(out.shape[2]), **constants)
        if pieces.slots:
            out[pieces.cut] = pieces.sums(partial).to(out.dtype)
    return out


@on_its_device
def edge_scores(q: Tensor, k: Tensor, edges: SortedEdges) -> Tensor:
    """See :func:`et.core.kernels.reference.edge_scores`."""
    (_, heads, width), q, k = q.shape, q.contiguous(), k.contiguous()
    out = q.new_empty(edges.num_edges, heads)
    if out.numel():
        launch(
            kernels.scores_kernel, lambda meta: (triton.cdiv(edges.num_edges, meta["BLOCK_E"]), heads),
            q, k, edges.query, edges.key, out, edges.num_edges, heads, width,
            configs=TUNED, key=("heads", "width"), BLOCK_Y=_block_y(width),
        )  # fmt: skip
    return out


@on_its_device
def edge_aggregate(weight: Tensor, x: Tensor, edges: SortedEdges, to_keys: bool = False) -> Tensor:
    """See :func:`et.core.kernels.reference.edge_aggregate`."""
    weight, x = weight.contiguous(), x.contiguous()
    index = (edges.by_key[1], edges.key_position) if to_keys else (edges.key, edges.key)
    pieces = pieces_of(edges, to_keys)
    return _sum_kernel(kernels.aggregate_kernel, torch.empty_like(x), (weight, x), pieces, index, PERMUTED=to_keys)


def _joined_softmax(pieces: Pieces, peak: Tensor, total: Tensor, peak_part: Tensor, total_part: Tensor) -> Tensor:
    """Fill in peak and total of the rows that are cut; returns what the pieces' sums are to be multiplied with."""
    largest = pieces.peaks(peak_part)
    shrink = (peak_part - largest.repeat_interleave(pieces.offsets.diff(), 0, output_size=pieces.slots)).exp()
    norm = pieces.sums(total_part * shrink)
    peak[pieces.cut], total[pieces.cut] = largest, torch.where(norm == 0, 1.0, norm)
    return shrink


@on_its_device
def segment_logsumexp(scores: Tensor, edges: SortedEdges) -> Tensor:
    """See :func:`et.core.kernels.reference.segment_logsumexp`."""
    heads, pieces = scores.shape[1], pieces_of(edges)
    peak, total = (scores.new_empty(edges.num_nodes, heads) for _ in range(2))
    if peak.numel():
        partial = [scores.new_empty(pieces.slots, heads) for _ in range(2)]
        arguments = (scores.contiguous(), *_cut(pieces), peak, total, *partial, heads)
        _launch(kernels.segment_softmax_kernel, (len(pieces.row), heads), *arguments)
        if pieces.slots:
            _joined_softmax(pieces, peak, total, *partial)
    return peak + total.log()


@on_its_device
def query_term(
    q: Tensor, k: Tensor, beta: Tensor, edges: SortedEdges, only_partition: bool = False, clamp: float = math.inf
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`et.core.kernels.numba.sparse.query_term`."""
    (nodes, heads, width), pieces = q.shape, pieces_of(edges)
    q, k, beta = q.contiguous(), k.contiguous(), beta.contiguous()
    u = torch.empty_like(q[:0] if only_partition else q)
    peak, total = (beta.new_empty(nodes, heads) for _ in range(2))
    if q.numel():
        u_part = beta.new_empty(0 if only_partition else pieces.slots, heads, width)
        softmax_part = [beta.new_empty(pieces.slots, heads) for _ in range(2)]
        tensors = (q, k, beta, *_cut(pieces), edges.key, u, peak, total, u_part, *softmax_part)
        constants = {"SUMS": not only_partition, "BLOCK_Y": _block_y(width)}
        _launch(
            kernels.query_term_kernel, (len(pieces.row), heads), *tensors, heads, width, k.shape[1], clamp, **constants
        )
        if pieces.slots:
            shrink = _joined_softmax(pieces, peak, total, *softmax_part)
            if not only_partition:
                u[pieces.cut] = (pieces.sums(u_part * shrink[..., None]) / total[pieces.cut][..., None]).to(u.dtype)
    return u, peak, total


@on_its_device
def key_term(
    q: Tensor, values: Tensor, k: Tensor, beta: Tensor, peak: Tensor, total: Tensor, edges: SortedEdges,
    clamp: float = math.inf,
) -> Tensor:  # fmt: skip
    """See :func:`et.core.kernels.numba.sparse.key_term`."""
    tensors = tuple(x.contiguous() for x in (q, values, k, beta, peak, total))
    out, operands, index = torch.empty_like(tensors[2]), (*tensors, q.shape[1], clamp), (edges.by_key[1],)
    return _sum_kernel(kernels.key_term_kernel, out, operands, pieces_of(edges, True), index)


@on_its_device
def attention_gradient(
    q: Tensor, k: Tensor, beta: Tensor, peak: Tensor, total: Tensor, grad_u: Tensor, grad_v: Tensor, edges: SortedEdges
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`et.core.kernels.numba.sparse.attention_gradient`."""
    (_, heads, width), pieces = q.shape, pieces_of(edges)
    tensors = tuple(x.contiguous() for x in (q, k, beta, peak, total, grad_u, grad_v))
    grad_q, mean, grad_beta = torch.empty_like(tensors[0]), torch.empty_like(peak), torch.empty_like(peak)
    if q.numel():
        rows, sums = beta.new_empty(pieces.slots, 3, heads), beta.new_empty(pieces.slots, 3, heads, width)
        arguments = (*tensors, *_cut(pieces), edges.key, grad_q, mean, grad_beta, rows, sums, heads, width)
        _launch(kernels.query_gradient_kernel, (len(pieces.row), heads), *arguments, BLOCK_Y=_block_y(width))
        if pieces.slots:
            average, with_slope, plain = pieces.sums(rows).unbind(1)
            keys, values, sloped = pieces.sums(sums).unbind(1)
            mean[pieces.cut], grad_beta[pieces.cut] = average, with_slope - average * plain
            found = values + beta[:, None] * (sloped - average[..., None] * keys)
            grad_q[pieces.cut] = found.to(grad_q.dtype)
    by_key, index = pieces_of(edges, True), (edges.by_key[1],)
    grad_k = _sum_kernel(kernels.key_gradient_kernel, torch.empty_like(tensors[1]), (*tensors, mean), by_key, index)
    return grad_q, grad_k, grad_beta.sum(0)
