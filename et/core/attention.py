"""Multi-head energy attention (paper eq. 3, 4, 13, 20, 25)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from et.core.arguments import check_sizes
from et.core.precision import at_least_float32, no_autocast
from et.core.topology import AllPairs, Topology


class EnergyAttention(nn.Module):
    """E = - sum_h 1/beta_h sum_C log sum_B exp(beta_h K_hB . Q_hC), with K = W^K g and Q = W^Q g (eq. 3, 4).

    Args:
        dim: token dimension D.
        num_heads: H.
        head_dim: Y.
        beta: inverse temperature, one number for all heads; 1/sqrt(Y) where not given.
        train_beta: train beta, one value a head.
        self_attention: whether a token is among its own keys (eq. 13) or not (eq. 3). Only for attention between all
            pairs: a topology that is given says itself who attends to whom.
        bias: add a bias (H, Y) to queries and keys (table 4: none).
        terms: which terms of the update to compute. ``both`` is the gradient of the energy; ``query`` keeps only the
            conventional attention W^Q K softmax, ``key`` only the second term (neither is a gradient: for ablation).
        init_std: standard deviation of the initial weights (algorithm 1).
        keep_maps: between all pairs, whether the softmax is stored for the backward pass or computed there again a part
            at a time, which never holds N x N; by default by its size.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        beta: float | None = None,
        train_beta: bool = False,
        self_attention: bool = False,
        bias: bool = False,
        terms: Literal["both", "query", "key"] = "both",
        init_std: float = 0.02,
        keep_maps: bool | None = None,
    ):
        super().__init__()
        if terms not in ("both", "query", "key"):
            raise ValueError(f"terms must be 'both', 'query' or 'key', not {terms!r}")
        check_sizes(dim=dim, num_heads=num_heads, head_dim=head_dim)
        self.dim, self.num_heads, self.head_dim, self.terms = dim, num_heads, head_dim, terms
        self.w_query = nn.Parameter(torch.empty(num_heads, head_dim, dim))
        self.w_key = nn.Parameter(torch.empty(num_heads, head_dim, dim))
        self.b_query = nn.Parameter(torch.zeros(num_heads, head_dim)) if bias else None
        self.b_key = nn.Parameter(torch.zeros(num_heads, head_dim)) if bias else None
        start = torch.full((num_heads,), 1 / math.sqrt(head_dim) if beta is None else float(beta))
        if train_beta:
            self.beta = nn.Parameter(start)
        else:
            self.register_buffer("beta", start)
        self.all_pairs = AllPairs(self_attention, keep_maps)
        nn.init.normal_(self.w_query, std=init_std)
        nn.init.normal_(self.w_key, std=init_std)

    def stacked_weights(self) -> Tensor:
        """[W^Q; W^K], (2HY, D)."""
        return torch.cat([self.w_query.flatten(0, 1), self.w_key.flatten(0, 1)])

    def stacked_bias(self) -> Tensor | None:
        """Biases of queries and keys, (2HY,), or None."""
        return None if self.b_query is None else torch.cat([self.b_query.flatten(), self.b_key.flatten()])

    def split_heads(self, qk: Tensor) -> tuple[Tensor, Tensor]:
        """(..., N, 2HY) -> queries and keys, each (..., N, H, Y)."""
        q, k = qk.unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(-3)
        return q, k

    def token_energy(self, g: Tensor, topology: Topology | None = None) -> Tensor:
        """Each query's share of the energy, (B, N, D) -> (B, N) or (N, D) -> (N,); float32 or better."""
        with no_autocast(g):
            g = at_least_float32(g)
            q, k = self.split_heads(torch.nn.functional.linear(g, self.stacked_weights(), self.stacked_bias()))
            log_partition = (self.all_pairs if topology is None else topology).log_partition(q, k, self.beta)
            return -(log_partition / self.beta).sum(-1)

    def energy(self, g: Tensor, topology: Topology | None = None) -> Tensor:
        """E^ATT of normalised tokens: (B, N, D) -> (B,), (N, D) -> (); float32 or better (eq. 3, 13, 20, 25)."""
        return self.token_energy(g, topology).sum(-1)

    def update(
        self,
        g: Tensor,
        topology: Topology | None = None,
        weights: tuple[Tensor, Tensor | None] | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """-dE^ATT/dg in closed form, shaped like ``g`` (the two softmax terms below eq. 8; eq. 17).

        Args:
            g: normalised tokens.
            topology: who attends to whom; all pairs where not given.
            weights: :meth:`stacked_weights` and :meth:`stacked_bias`, for callers that have them already.
            wanted: (n,) numbers of the tokens whose update is wanted; all where not given. The others are keys and
                queries all the same, but half of the products with the weights is spared for them.
        """
        matrix, bias = weights or (self.stacked_weights(), self.stacked_bias())
        if topology is not None or self.terms != "both":
            neighbours = self.all_pairs if topology is None else topology
            return self._update_by_halves(g, neighbours, matrix, bias, wanted)
        # One product, and one tensor of queries and keys, which the kernels for all pairs take as it is.
        qk = torch.nn.functional.linear(g, matrix, bias).unflatten(-1, (2, self.num_heads, self.head_dim))
        mixed = self.all_pairs.mix_joined(qk, self.beta).flatten(-3)
        return (mixed if wanted is None else mixed.index_select(-2, wanted)) @ matrix

    def _update_by_halves(
        self, g: Tensor, topology: Topology, matrix: Tensor, bias: Tensor | None, wanted: Tensor | None
    ) -> Tensor:
        """:meth:`update` with a product for queries and one for keys: nothing has to be taken apart or joined."""
        matrices = matrix.chunk(2)
        biases = (None, None) if bias is None else bias.chunk(2)
        q, k = (
            torch.nn.functional.linear(g, half, shift).unflatten(-1, (self.num_heads, self.head_dim))
            for half, shift in zip(matrices, biases, strict=True)
        )
        parts = []
        for name, term, half in zip(("query", "key"), topology.mix(q, k, self.beta), matrices, strict=True):
            if self.terms in (name, "both"):
                term = term.flatten(-2)
                parts.append((term if wanted is None else term.index_select(-2, wanted)) @ half)
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"self_attention={self.all_pairs.self_attention}, terms={self.terms!r}"
        )
