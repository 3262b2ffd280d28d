"""The Triton kernels of attention along edges: what one program computes (see et/core/kernels/triton.py).

A program has one piece of a row (:class:`et.core.kernels.triton_runtime.Pieces`) and one head. It writes to the output
if its piece is a whole row, else to the partial results (names in ``_part``).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _piece(start, row_of, low_of, slot_of, split):
    """Row, first edge, edge after the last, and slot of this program's piece."""
    w = tl.program_id(0)
    row, low = tl.load(row_of + w).to(tl.int64), tl.load(low_of + w)
    return row, low, tl.minimum(low + split, tl.load(start + row + 1)), tl.load(slot_of + w).to(tl.int64)


@triton.jit
def _rows(x, node, h, heads, width, mask, ACC: tl.constexpr, BLOCK_Y: tl.constexpr):
    """x[node, h] for a block of nodes: (BLOCK_E, BLOCK_Y), zero beyond the width and where the mask is false."""
    y = tl.arange(0, BLOCK_Y)
    place = (node.to(tl.int64)[:, None] * heads + h) * width + y[None, :]
    return tl.load(x + place, mask=mask[:, None] & (y[None, :] < width), other=0.0).to(ACC)


@triton.jit
def _row(x, row, h, heads, width, ACC: tl.constexpr, BLOCK_Y: tl.constexpr):
    """x[row, h]: (BLOCK_Y,), zero beyond the width."""
    y = tl.arange(0, BLOCK_Y)
    return tl.load(x + (row * heads + h) * width + y, mask=y < width, other=0.0).to(ACC)


@triton.jit
def _store_row(x, row, h, heads, width, value, wanted, BLOCK_Y: tl.constexpr):
    """x[row, h] = value where ``wanted``."""
    y = tl.arange(0, BLOCK_Y)
    tl.store(x + (row * heads + h) * width + y, value.to(x.dtype.element_ty), mask=(y < width) & wanted)


@triton.jit
def _limit(scores, clamp):
    """Scores of at least -clamp and at most clamp; NaN stays NaN, which Triton's minimum alone would drop."""
    low = tl.maximum(scores, -clamp, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(low, clamp, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _softmax(raw, beta, clamp, peak, total, node, h, heads, mask):
    """P on a block of edges, from their inner products and the queries' softmax; 0 where the mask is false."""
    place = node.to(tl.int64) * heads + h
    largest = tl.load(peak + place, mask=mask, other=0.0)
    scores = tl.where(mask, _limit(raw * beta, clamp), float("-inf"))
    return tl.exp(scores - largest) / tl.load(total + place, mask=mask, other=1.0)


@triton.jit
def scores_kernel(q, k, query, key, out, edges, heads, width, BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr):
    h = tl.program_id(1)
    e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask = e < edges
    ACC: tl.constexpr = out.dtype.element_ty
    at_query = _rows(q, tl.load(query + e, mask=mask, other=0), h, heads, width, mask, ACC, BLOCK_Y)
    at_key = _rows(k, tl.load(key + e, mask=mask, other=0), h, heads, width, mask, ACC, BLOCK_Y)
    tl.store(out + e * heads + h, tl.sum(at_query * at_key, 1), mask=mask)


@triton.jit
def aggregate_kernel(
    weight, x, start, row_of, low_of, slot_of, split, source, position, out, partial, heads, width,
    PERMUTED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1)
    row, low, high, slot = _piece(start, row_of, low_of, slot_of, split)
    ACC: tl.constexpr = partial.dtype.element_ty
    total = tl.zeros((BLOCK_Y,), dtype=ACC)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = e < high
        node = tl.load(source + e, mask=mask, other=0)
        if PERMUTED:
            e = tl.load(position + e, mask=mask, other=0).to(tl.int64)
        w = tl.load(weight + e * heads + h, mask=mask, other=0.0).to(ACC)
        total += tl.sum(w[:, None] * _rows(x, node, h, heads, width, mask, ACC, BLOCK_Y), 0)
    _store_row(out, row, h, heads, width, total, slot < 0, BLOCK_Y)
    _store_row(partial, slot, h, heads, width, total, slot >= 0, BLOCK_Y)


@triton.jit
def _store_softmax(peak, total, row, h, heads, largest, norm, wanted):
    tl.store(peak + row * heads + h, largest, mask=wanted)
    tl.store(total + row * heads + h, norm, mask=wanted)


@triton.jit
def segment_softmax_kernel(
    scores, start, row_of, low_of, slot_of, split, peak, total, peak_part, total_part, heads, BLOCK_E: tl.constexpr
):
    h = tl.program_id(1)
    row, low, high, slot = _piece(start, row_of, low_of, slot_of, split)
    ACC: tl.constexpr = peak.dtype.element_ty
    largest, norm = tl.full((), float("-inf"), dtype=ACC), tl.zeros((), dtype=ACC)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        found = tl.load(scores + e * heads + h, mask=e < high, other=float("-inf")).to(ACC)
        new = tl.maximum(largest, tl.max(found, 0))
        shift = tl.where(new == float("-inf"), 0.0, new)  # scores may all be -inf
        norm = norm * tl.exp(largest - shift) + tl.sum(tl.exp(found - shift), 0)
        largest = new
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    _store_softmax(peak, total, row, h, heads, largest, tl.where(norm == 0, 1.0, norm), slot < 0)
    _store_softmax(peak_part, total_part, slot, h, heads, largest, norm, slot >= 0)


@triton.jit
def query_term_kernel(
    q, k, beta, start, row_of, low_of, slot_of, split, key, u, peak, total, u_part, peak_part, total_part,
    heads, width, key_heads, clamp, SUMS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1)
    row, low, high, slot = _piece(start, row_of, low_of, slot_of, split)
    ACC: tl.constexpr = beta.dtype.element_ty
    at_query, b = _row(q, row, h, heads, width, ACC, BLOCK_Y), tl.load(beta + h)
    largest, norm = tl.full((), float("-inf"), dtype=ACC), tl.zeros((), dtype=ACC)
    sums = tl.zeros((BLOCK_Y,), dtype=ACC)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = e < high
        node = tl.load(key + e, mask=mask, other=0)
        at_key = _rows(k, node, h % key_heads, key_heads, width, mask, ACC, BLOCK_Y)
        scores = tl.where(mask, _limit(tl.sum(at_query[None, :] * at_key, 1) * b, clamp), float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 0))
        p, shrink = tl.exp(scores - new), tl.exp(largest - new)
        norm = norm * shrink + tl.sum(p, 0)
        if SUMS:
            sums = sums * shrink + tl.sum(p[:, None] * at_key, 0)
        largest = new
    norm, largest = tl.where(high > low, norm, 1.0), tl.where(high > low, largest, 0.0)
    _store_softmax(peak, total, row, h, heads, largest, norm, slot < 0)
    _store_softmax(peak_part, total_part, slot, h, heads, largest, norm, slot >= 0)
    if SUMS:
        _store_row(u, row, h, heads, width, sums / norm, slot < 0, BLOCK_Y)
        _store_row(u_part, slot, h, heads, width, sums, slot >= 0, BLOCK_Y)


@triton.jit
def key_term_kernel(
    q, values, k, beta, peak, total, query_heads, clamp, start, row_of, low_of, slot_of, split, query, v, v_part,
    heads, width, BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1)
    row, low, high, slot = _piece(start, row_of, low_of, slot_of, split)
    ACC: tl.constexpr = beta.dtype.element_ty
    at_key, b = _row(k, row, h, heads, width, ACC, BLOCK_Y), tl.load(beta + h)
    sums = tl.zeros((BLOCK_Y,), dtype=ACC)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = e < high
        node = tl.load(query + e, mask=mask, other=0)
        hq = h % query_heads
        raw = tl.sum(_rows(q, node, hq, query_heads, width, mask, ACC, BLOCK_Y) * at_key[None, :], 1)
        p = _softmax(raw, b, clamp, peak, total, node, h, heads, mask)
        sums += tl.sum(p[:, None] * _rows(values, node, hq, query_heads, width, mask, ACC, BLOCK_Y), 0)
    _store_row(v, row, h, heads, width, sums, slot < 0, BLOCK_Y)
    _store_row(v_part, slot, h, heads, width, sums, slot >= 0, BLOCK_Y)


@triton.jit
def query_gradient_kernel(
    q, k, beta, peak, total, gu, gv, start, row_of, low_of, slot_of, split, key, gq, mean, gbeta, rows_part, sums_part,
    heads, width, BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    """One pass: sums of P K, P V' and P s K with the slopes s = dL/dP, whose mean is known only at the end."""
    h = tl.program_id(1)
    row, low, high, slot = _piece(start, row_of, low_of, slot_of, split)
    ACC: tl.constexpr = beta.dtype.element_ty
    at_query, b = _row(q, row, h, heads, width, ACC, BLOCK_Y), tl.load(beta + h)
    u = _row(gu, row, h, heads, width, ACC, BLOCK_Y)
    average, with_slope = tl.zeros((), dtype=ACC), tl.zeros((), dtype=ACC)
    plain = tl.zeros((), dtype=ACC)
    keys, values = tl.zeros((BLOCK_Y,), dtype=ACC), tl.zeros((BLOCK_Y,), dtype=ACC)
    sloped = tl.zeros((BLOCK_Y,), dtype=ACC)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = e < high
        node = tl.load(key + e, mask=mask, other=0)
        at_key = _rows(k, node, h, heads, width, mask, ACC, BLOCK_Y)
        v = _rows(gv, node, h, heads, width, mask, ACC, BLOCK_Y)
        raw = tl.sum(at_query[None, :] * at_key, 1)
        p = _softmax(raw, b, float("inf"), peak, total, tl.where(mask, row, 0), h, heads, mask)
        slope = p * tl.sum(u[None, :] * at_key + v * at_query[None, :], 1)
        average += tl.sum(slope, 0)
        with_slope += tl.sum(slope * raw, 0)
        plain += tl.sum(p * raw, 0)
        keys += tl.sum(p[:, None] * at_key, 0)
        values += tl.sum(p[:, None] * v, 0)
        sloped += tl.sum(slope[:, None] * at_key, 0)
    place = row * heads + h
    tl.store(mean + place, average, mask=slot < 0)
    tl.store(gbeta + place, with_slope - average * plain, mask=slot < 0)
    _store_row(gq, row, h, heads, width, values + b * (sloped - average * keys), slot < 0, BLOCK_Y)
    place = slot * 3 * heads + h
    tl.store(rows_part + place, average, mask=slot >= 0)
    tl.store(rows_part + place + heads, with_slope, mask=slot >= 0)
    tl.store(rows_part + place + 2 * heads, plain, mask=slot >= 0)
    _store_row(sums_part, slot * 3, h, heads, width, keys, slot >= 0, BLOCK_Y)
    _store_row(sums_part, slot * 3 + 1, h, heads, width, values, slot >= 0, BLOCK_Y)
    _store_row(sums_part, slot * 3 + 2, h, heads, width, sloped, slot >= 0, BLOCK_Y)


@triton.jit
def key_gradient_kernel(
    q, k, beta, peak, total, gu, gv, mean, start, row_of, low_of, slot_of, split, query, gk, gk_part, heads, width,
    BLOCK_E: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1)
    row, low, high, slot = _piece(start, row_of, low_of, slot_of, split)
    ACC: tl.constexpr = beta.dtype.element_ty
    at_key, b = _row(k, row, h, heads, width, ACC, BLOCK_Y), tl.load(beta + h)
    v = _row(gv, row, h, heads, width, ACC, BLOCK_Y)
    sums = tl.zeros((BLOCK_Y,), dtype=ACC)
    for e0 in range(low, high, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = e < high
        node = tl.load(query + e, mask=mask, other=0)
        at_query = _rows(q, node, h, heads, width, mask, ACC, BLOCK_Y)
        u = _rows(gu, node, h, heads, width, mask, ACC, BLOCK_Y)
        p = _softmax(tl.sum(at_query * at_key[None, :], 1), b, float("inf"), peak, total, node, h, heads, mask)
        slope = tl.sum(u * at_key[None, :] + v[None, :] * at_query, 1)
        average = tl.load(mean + node.to(tl.int64) * heads + h, mask=mask, other=0.0)
        change = b * p * (slope - average)
        sums += tl.sum(p[:, None] * u + change[:, None] * at_query, 0)
    _store_row(gk, row, h, heads, width, sums, slot < 0, BLOCK_Y)
    _store_row(gk_part, slot, h, heads, width, sums, slot >= 0, BLOCK_Y)
