"""Scoring of a graph of millions of nodes on one machine: the numbers of the forward pass, computed in pieces.

A step moves all nodes at once, so the tokens before and after it are kept, 2 N D numbers. Everything else is computed
in pieces: layer norm and projections for a block of nodes, attention for one head at a time and for a slice of the Y
components of queries and keys. Beside the tokens there are at most two tensors of N x (slice of Y), and a few of E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from et.core import EdgeTopology
from et.core.sparse import edge_aggregate, edge_scores

WHOLE = 2**17  # maximum number of nodes of a graph that is scored in one piece
BLOCK = 2**13  # nodes at a time of a larger one: few enough that what one operation leaves is in the cache for the next
SLICE = 64  # of the Y components of queries and keys


@dataclass(frozen=True)
class Step:
    """The parts of one step of the dynamics.

    Attributes:
        norm: Layer norm, (n, D) -> g (n, D).
        w_query, w_key: Projections, (H, Y, D), or None without attention.
        edge_weights: Maps (inner products K_B . Q_C (E, 1), topology, head) to attention weights (E, 1).
        hopfield: Update of the Hopfield network, g (n, D) -> (n, D), or None without it.
        step_size: Factor of the update.
        from_normalised: If True, the update is added to g instead of x.
    """

    norm: Callable[[Tensor], Tensor]
    w_query: Tensor | None
    w_key: Tensor | None
    edge_weights: Callable[[Tensor, EdgeTopology, int], Tensor]
    hopfield: Callable[[Tensor], Tensor] | None
    step_size: float = 1.0
    from_normalised: bool = False


def blocks(num_nodes: int, size: int) -> Iterator[slice]:
    """Slices of 0 .. num_nodes - 1 with at most ``size`` elements."""
    return (slice(first, min(first + size, num_nodes)) for first in range(0, num_nodes, size))


def take_step(
    step: Step, x: Tensor, topology: EdgeTopology, block: int = BLOCK, width: int = SLICE, kept: Tensor | None = None
) -> Tensor:
    """Tokens x after one step, (N, D), without gradients.

    Args:
        step: Parts of the step.
        x: Tokens, (N, D).
        topology: Edges.
        block: Number of nodes at a time.
        width: Number of components of queries and keys at a time.
        kept: Attention updates of the earlier relations, (N, D), changed in place. A node with an edge replaces its
            own; a node without an edge uses it. If None, a node without an edge has no such update.
    """
    after = torch.empty_like(x)
    for part in blocks(len(x), block):
        g = step.norm(x[part])
        after[part] = g if step.from_normalised else x[part]
        if step.hopfield is not None:
            after[part] += step.step_size * step.hopfield(g)
    if step.w_query is None:
        return after
    if kept is not None:
        kept[topology.edges.degree > 0] = 0
    for head in range(len(step.w_query)):  # adds nothing to a node without an edge
        _attend(step, head, x, after if kept is None else kept, topology, block, width)
    return after if kept is None else after.add_(kept)


def _attend(step: Step, head: int, x: Tensor, total: Tensor, topology: EdgeTopology, block: int, width: int) -> None:
    """Add the contribution of one head to ``total``, (N, D), in place."""
    edges = topology.edges
    slices = list(zip(step.w_query[head].split(width), step.w_key[head].split(width), strict=True))
    scores = None
    for w_query, w_key in slices:
        inner = edge_scores(_project(step, x, w_query, block), _project(step, x, w_key, block), edges)
        scores = inner if scores is None else scores.add_(inner)
    weights = step.edge_weights(scores, topology, head)
    del scores, inner
    for w_query, w_key in slices:
        for source, back, to_keys in ((w_key, w_query, False), (w_query, w_key, True)):
            collected = edge_aggregate(weights, _project(step, x, source, block), edges, to_keys)[:, 0]
            for part in blocks(len(x), block):
                total[part] += step.step_size * (collected[part] @ back)


def _project(step: Step, x: Tensor, weight: Tensor, block: int) -> Tensor:
    """Queries or keys of all nodes: x (N, D), weight (y, D) -> (N, 1, y)."""
    projected = x.new_empty(len(x), 1, len(weight))
    for part in blocks(len(x), block):
        projected[part, 0] = step.norm(x[part]) @ weight.T
    return projected
