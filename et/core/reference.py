"""The whole Energy Transformer in plain torch, to read and to test against (https://arxiv.org/abs/2302.07253).

This file has no custom kernels, no batching over samples and no shortcuts; each line shows the shape of its result:
N tokens of dimension D, H heads of dimension Y, M memories. :mod:`et.core` computes the same numbers faster.

The model is an energy E(g) of the layer-normalised tokens g = LayerNorm(x). The forward pass descends it:

    x <- x - alpha dE/dg,    E = E_attention + E_hopfield

Attention follows a topology: ``pairs`` (N, N) says how often key B (column) counts for query C (row): 0 or 1 between
all pairs, the multiplicity of the edge in a graph. Appendix D weights the scores by an adjacency ``ahat`` (N, N, H).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """Parameters of an ET block."""

    gamma: Tensor  # (): gain of the layer norm
    delta: Tensor  # (D,): bias of the layer norm
    w_query: Tensor  # (H, Y, D)
    w_key: Tensor  # (H, Y, D)
    beta: Tensor  # (H,): inverse temperatures, usually 1 / sqrt(Y)
    memories: Tensor  # (M, D)


def layer_norm(x: Tensor, weights: Weights, eps: float = 1e-5) -> Tensor:
    """Normalised tokens g (eq. 1): (N, D) -> (N, D)."""
    centred = x - x.mean(-1, keepdim=True)  # (N, D)
    variance = centred.square().mean(-1, keepdim=True)  # (N, 1)
    return weights.gamma * centred / (variance + eps).sqrt() + weights.delta  # (N, D)


def all_pairs(n: int, self_attention: bool = False) -> Tensor:
    """Every token is a key of every other (eq. 3), or also of itself (eq. 13): (N, N)."""
    ones = torch.ones(n, n)  # (N, N)
    return ones if self_attention else ones - torch.eye(n)  # (N, N)


def edge_pairs(edge_index: Tensor, n: int) -> Tensor:
    """Pairs of a graph, edge_index (2, E) with keys above queries (eq. 17): (N, N)."""
    key, query = edge_index  # (E,), (E,)
    pairs = edge_index.new_zeros(n, n)  # (N, N)
    return pairs.index_put((query, key), torch.ones_like(key), accumulate=True)  # (N, N): repeated edges add up


def queries_keys(g: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Projections of the tokens (eq. 4): (N, D) -> (N, H, Y), (N, H, Y)."""
    q = torch.einsum("nd,hyd->nhy", g, weights.w_query)  # (N, H, Y)
    k = torch.einsum("nd,hyd->nhy", g, weights.w_key)  # (N, H, Y)
    return q, k  # (N, H, Y), (N, H, Y)


def exponentials(
    q: Tensor, k: Tensor, weights: Weights, pairs: Tensor, ahat: Tensor | None = None, head_mix: Tensor | None = None
) -> Tensor:
    """Exponentiated scores of all pairs, counted as ``pairs`` says: (N, H, Y), (N, H, Y) -> (N, N, H)."""
    scores = weights.beta * torch.einsum("chy,bhy->cbh", q, k)  # (N, N, H): query C, key B
    if head_mix is not None:
        scores = scores @ head_mix  # (N, N, H): mixed over the heads by an (H, H) matrix
    if ahat is not None:
        scores = scores * ahat  # (N, N, H): weighted by the adjacency (eq. 25), in which 0 is no edge
        return pairs.to(q)[..., None] * scores.exp() * (ahat != 0)  # (N, N, H)
    return pairs.to(q)[..., None] * scores.exp()  # (N, N, H)


def attention_energy(
    g: Tensor, weights: Weights, pairs: Tensor, ahat: Tensor | None = None, head_mix: Tensor | None = None
) -> Tensor:
    """E_attention = - sum_h 1/beta_h sum_C log sum_B exp(score_CB) (eq. 3, 13, 20, 25): (N, D) -> ()."""
    partition = exponentials(*queries_keys(g, weights), weights, pairs, ahat, head_mix).sum(1)  # (N, H)
    log_partition = torch.where(partition > 0, partition, 1.0).log()  # (N, H): 0 for a query without keys
    return -(log_partition / weights.beta).sum()  # ()


def hopfield_energy(g: Tensor, weights: Weights) -> Tensor:
    """E_hopfield = - 1/2 sum_B sum_mu max(xi_mu . g_B, 0)^2 (eq. 5): (N, D) -> ()."""
    hidden = g @ weights.memories.T  # (N, M)
    return -0.5 * hidden.relu().square().sum()  # ()


def energy(g: Tensor, weights: Weights, pairs: Tensor) -> Tensor:
    """Total energy of the block (eq. 6): (N, D) -> ()."""
    return attention_energy(g, weights, pairs) + hopfield_energy(g, weights)  # ()


def attention_update(g: Tensor, weights: Weights, pairs: Tensor) -> Tensor:
    """-dE_attention/dg in closed form (the two terms below eq. 8; eq. 17): (N, D) -> (N, D)."""
    q, k = queries_keys(g, weights)  # (N, H, Y), (N, H, Y)
    e = exponentials(q, k, weights, pairs)  # (N, N, H)
    p = e / e.sum(1, keepdim=True).clamp_min(1e-30)  # (N, N, H): softmax over the keys; 0 without keys
    u = torch.einsum("cbh,bhy->chy", p, k)  # (N, H, Y): conventional attention, with keys for values
    v = torch.einsum("cbh,chy->bhy", p, q)  # (N, H, Y): what a key collects from its queries; only ET has this
    return torch.einsum("nhy,hyd->nd", u, weights.w_query) + torch.einsum("nhy,hyd->nd", v, weights.w_key)  # (N, D)


def hopfield_update(g: Tensor, weights: Weights) -> Tensor:
    """-dE_hopfield/dg = relu(g xi^T) xi (eq. 9): (N, D) -> (N, D)."""
    return (g @ weights.memories.T).relu() @ weights.memories  # (N, M) @ (M, D) -> (N, D)


def update(g: Tensor, weights: Weights, pairs: Tensor) -> Tensor:
    """-dE/dg in closed form: the negative gradient of :func:`energy`: (N, D) -> (N, D)."""
    return attention_update(g, weights, pairs) + hopfield_update(g, weights)  # (N, D)


def descend(x: Tensor, weights: Weights, pairs: Tensor, steps: int, step_size: float) -> tuple[Tensor, Tensor]:
    """T steps of eq. 6, and the energy before the first and after each: (N, D) -> (N, D), (T + 1,)."""
    energies = [energy(layer_norm(x, weights), weights, pairs)]  # ()
    for _ in range(steps):
        x = x + step_size * update(layer_norm(x, weights), weights, pairs)  # (N, D)
        energies.append(energy(layer_norm(x, weights), weights, pairs))  # ()
    return x, torch.stack(energies)  # (N, D), (T + 1,)
