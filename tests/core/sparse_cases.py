"""Graphs, operands and comparisons shared by the tests of sparse attention."""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from et.core import sparse
from et.core.csr import SortedEdges
from et.core.kernels import reference as kernels_reference


def random_graph(num_nodes: int, num_edges: int, seed: int = 0) -> Tensor:
    """Directed, with repeated edges and self-loops."""
    return torch.randint(0, num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(seed))


def symmetric_graph(num_nodes: int, num_edges: int) -> Tensor:
    half = random_graph(num_nodes, num_edges // 2)
    return torch.cat([half, half.flip(0)], dim=1)


def star(leaves: int) -> Tensor:
    """Node 0 attends to all others and they to it."""
    leaf = torch.arange(1, leaves + 1)
    hub = torch.zeros_like(leaf)
    return torch.cat([torch.stack([leaf, hub]), torch.stack([hub, leaf])], dim=1)


NO_EDGES = torch.zeros(2, 0, dtype=torch.int64)
GRAPHS = {
    "multigraph": (random_graph(9, 300), 9),
    "symmetric": (symmetric_graph(40, 200), 40),
    "sparse_directed": (random_graph(60, 70), 60),
    "isolated_nodes": (random_graph(20, 80) + 5, 40),
    "self_loops": (torch.arange(12).expand(2, 12), 12),
    "one_way": (torch.tensor([[0, 0, 0, 0], [1, 2, 3, 3]]), 4),
    "star": (star(70), 71),
    "one_node_self_loop": (torch.zeros(2, 3, dtype=torch.int64), 1),
    "one_node_no_edge": (NO_EDGES, 1),
    "no_edge": (NO_EDGES, 7),
    "no_node": (NO_EDGES, 0),
}


def operands(edges: SortedEdges, heads: int = 3, width: int = 5, dtype=torch.float32, seed: int = 0) -> list[Tensor]:
    """Queries, keys and inverse temperatures that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, edges.num_nodes, heads, width, generator=generator, dtype=torch.float64)
    beta = torch.rand(heads, generator=generator, dtype=torch.float64) + 0.3
    return [x.to(dtype).requires_grad_() for x in (q, k, beta)]


def assert_blocks_agree(kernels: ModuleType, edges: SortedEdges, size: int, clamp: float, dtype: torch.dtype) -> None:
    """Both sums of one row for all heads, a block of nodes at a time, against plain gather and scatter in double.

    The scores are g_C A_h . g_B, as in :mod:`et.anomaly.scoring`.
    """
    generator = torch.Generator().manual_seed(4)
    g = torch.randn(edges.num_nodes, 5, generator=generator, dtype=torch.float64).to(dtype)
    a = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64).to(dtype)
    beta = torch.tensor([0.3, 1.1, -0.7], dtype=dtype)
    rows, parts = g[:, None], [slice(low, low + size) for low in range(0, len(g), size)]
    found = [
        kernels.query_term(torch.einsum("nd,hde->nhe", g[part], a), rows, beta, edges.chunk(part), clamp=clamp)
        for part in parts
    ]
    u, peak, total = (torch.cat(part) for part in zip(*found, strict=True))
    v = [
        kernels.key_term(
            rows, rows, torch.einsum("nd,hed->nhe", g[part], a), beta, peak, total, edges.chunk(part, True), clamp
        )
        for part in parts
    ]
    g, a, beta = g.double(), a.double(), beta.double()
    rows = g[:, None].expand(-1, 3, -1)
    scores = kernels_reference.edge_scores(torch.einsum("nd,hde->nhe", g, a), rows, edges) * beta
    scores = scores.clamp(-clamp, clamp)
    p = (scores - kernels_reference.segment_logsumexp(scores, edges)[edges.query]).exp()
    expected = [kernels_reference.edge_aggregate(p, rows, edges, to_keys) for to_keys in (False, True)]
    assert_relative([u, torch.cat(v)], expected, 1e-12 if dtype == torch.float64 else 1e-5)


def assert_nan_is_kept(backend: str, edges: SortedEdges, clamp: float | None, heads: int = 3) -> None:
    """NaN in one query, one key or one score makes the same rows NaN as in the reference: no kernel hides it."""
    kernels, limit = sparse.select_backend(backend, torch.empty(0)), math.inf if clamp is None else clamp
    for place in range(3):
        q, k, beta = (x.detach() for x in operands(edges, heads))
        if place < 2:
            (q, k)[place][-1] = torch.nan
        else:  # infinity - infinity in the inner products of one query
            q[-1, :, 0], q[-1, :, 1], k[:, :, :2] = torch.inf, -torch.inf, 1.0
        expected = [x.isnan() for x in kernels_reference.attention(q, k, beta, edges, clamp)]
        u, peak, total = kernels.query_term(q, k, beta, edges, clamp=limit)
        v = kernels.key_term(q, q, k, beta, peak, total, edges, limit)
        for found in ((u, v), sparse.attention(q, k, beta, edges, clamp, backend)):
            assert all(torch.equal(x.isnan(), nan) and nan.any() for x, nan in zip(found, expected, strict=True))


def in_double(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_(x.requires_grad) for x in tensors]


def outputs_and_gradients(function, inputs: list[Tensor], *arguments, **options) -> list[Tensor]:
    outputs = function(*inputs, *arguments, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, cotangents)]


def assert_relative(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    """Largest error within ``tolerance`` of the largest value (of 1 at least: zeros come with rounding errors)."""
    for number, (x, y) in enumerate(zip(actual, expected, strict=True)):
        assert x.shape == y.shape
        error = (x.double() - y).abs().max().item() if y.numel() else 0.0
        assert error <= tolerance * max(1.0, y.abs().max().item() if y.numel() else 1.0), f"output {number}: {error}"
