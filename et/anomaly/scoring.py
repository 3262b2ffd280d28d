"""Scoring of a graph of millions of nodes on one machine: the numbers of the forward pass, computed in pieces.

A step moves all nodes at once, so the tokens before and after it are stored, and g between them: 3 N D numbers.
Everything else is computed for a chunk of nodes.

Along edges, only g is gathered, once for all heads. With A_h = W^Q_h^T W^K_h, the score of key B for query C is
(A_h^T g_C) . g_B, and the update (eq. 17) of node A is

    sum_h A_h (sum_B P_hAB g_B) + A_h^T (sum_C P_hCA g_C)

A pass over the edges computes the first sum and the softmax of every query; another one computes the second sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from et.core import EdgeTopology
from et.core.kernels import chunked
from et.core.precision import at_least_float32, no_autocast
from et.core.sparse import select_backend

WHOLE = 2**17  # maximum number of nodes of a graph that is scored in one piece
CHUNK = 2**13  # nodes at a time of a larger one: few enough that what one operation leaves is in the cache for the next


@dataclass(frozen=True)
class Step:
    """The parts of one step of the dynamics.

    Attributes:
        norm: Layer norm, (n, D) -> g (n, D).
        w_query, w_key: Projections, (H, Y, D), or None without attention.
        beta: Inverse temperatures, (H,), or None without attention.
        hopfield: Update of the Hopfield network, g (n, D) -> (n, D), or None without it.
        clamp: Limit the scores to -clamp .. clamp.
        step_size: Factor of the update.
        from_normalised: If True, the update is added to g instead of x.
    """

    norm: Callable[[Tensor], Tensor]
    w_query: Tensor | None
    w_key: Tensor | None
    beta: Tensor | None
    hopfield: Callable[[Tensor], Tensor] | None
    clamp: float = math.inf
    step_size: float = 1.0
    from_normalised: bool = False


def chunks(num_nodes: int, size: int) -> Iterator[slice]:
    """Slices of 0 .. num_nodes - 1 with at most ``size`` elements."""
    return (slice(first, min(first + size, num_nodes)) for first in range(0, num_nodes, size))


def take_step(
    step: Step, x: Tensor, topology: EdgeTopology, chunk_size: int = CHUNK, carried: Tensor | None = None
) -> Tensor:
    """Tokens x after one step, (N, D), without gradients.

    Args:
        step: Parts of the step.
        x: Tokens, (N, D).
        topology: Edges.
        chunk_size: Number of nodes at a time; along edges, of each thread.
        carried: Attention updates of the earlier relations, (N, D), changed in place. A node with an edge replaces its
            own; a node without an edge uses it. If None, a node without an edge has no such update.
    """
    g, after = at_least_float32(x[:0]).new_empty(x.shape), torch.empty_like(x)
    for part in chunks(len(x), chunk_size):
        g[part] = own = step.norm(x[part])
        after[part] = own if step.from_normalised else x[part]
        if step.hopfield is not None:
            after[part] += step.step_size * step.hopfield(own)
    if step.w_query is None:
        return after
    if carried is not None:
        carried[topology.edges.has_edge] = 0
    with no_autocast(x):
        # adds nothing to a node without an edge
        _attend(step, g, after if carried is None else carried, topology, chunk_size)
    return after if carried is None else after.add_(carried)


def _attend(step: Step, g: Tensor, total: Tensor, topology: EdgeTopology, chunk_size: int) -> None:
    """Add both terms of the attention update to ``total``, (N, D), in place."""
    edges, kernels = topology.edges, select_backend(topology.backend, g)
    kernels = kernels if hasattr(kernels, "query_term") else chunked
    products = step.w_query.to(g.dtype).mT @ step.w_key.to(g.dtype)  # A, (H, D, D)
    heads, dim, _ = products.shape
    rows, beta = g[:, None], step.beta.to(g.dtype)  # (N, 1, D), (H,)
    peak, norm = (g.new_empty(len(g), heads) for _ in range(2))
    for by_key, matrices in ((False, products), (True, products.mT)):
        project = matrices.transpose(0, 1).reshape(dim, -1)  # (D, H D)
        for part in chunks(len(g), chunk_size * torch.get_num_threads()):
            own, some = (g[part] @ project).view(-1, heads, dim), edges.chunk(part, by_key)
            if by_key:
                sums = kernels.key_term(rows, rows, own, beta, peak, norm, some, step.clamp)
            else:
                sums, peak[part], norm[part] = kernels.query_term(own, rows, beta, some, clamp=step.clamp)
            total[part] += step.step_size * (sums.flatten(1) @ project.T)
