"""Multi-head energy attention (paper eq. 3, 4, 13, 20, 25)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from et.core.arguments import check_sizes
from et.core.precision import at_least_float32, no_autocast
from et.core.topology import AllPairs, Topology

Weights = tuple[Tensor, Tensor | None]  # a matrix and its bias


class EnergyAttention(nn.Module):
    r"""Multi-head energy attention, from `Energy Transformer <https://arxiv.org/abs/2302.07253>`_ (eq. 3, 4).

    .. math::
        E^{ATT} = - \sum_h \frac{1}{\beta_h} \sum_C \log \sum_{B \neq C} \exp(\beta_h K_{hB} \cdot Q_{hC}),
        \qquad K_{hB} = W^K_h g_B, \quad Q_{hC} = W^Q_h g_C

    With P the softmax over the keys B, the update has two terms: conventional attention and the one that makes it a
    gradient.

    .. math::
        -\frac{\partial E^{ATT}}{\partial g_A}
        = \sum_h \Big( (W^Q_h)^T \sum_B P_{hAB} K_{hB} + (W^K_h)^T \sum_C P_{hCA} Q_{hC} \Big)

    Calling the module computes :meth:`update`.

    Args:
        dim: Token dimension D.
        num_heads: Number of heads H.
        head_dim: Dimension Y of a head's queries and keys.
        beta: Inverse temperature of the softmax (paper: beta), the same for all heads. If None, 1/sqrt(Y).
        train_beta: If True, beta is a parameter with one value per head; else a buffer.
        self_attention: If True, a token is among its own keys (eq. 13), else not (eq. 3). Ignored if a topology is
            given.
        bias: If True, add a bias to queries and keys (table 4: False).
        terms: Terms of the update: ``"both"`` (the gradient of the energy), ``"query"`` (conventional attention only)
            or ``"key"`` (the second term only). The latter two are for ablations; neither is a gradient.
        init_std: Standard deviation of the initial weights (algorithm 1: 0.02).
        store_attention: Between all pairs: if True, the attention matrices are stored for the backward pass; if False,
            they are computed again, in parts of bounded memory. If None, the smaller ones are stored.

    Attributes:
        w_query, w_key: Projections, (H, Y, D).
        b_query, b_key: Their biases, (H, Y), or None.
        beta: Inverse temperatures, (H,).

    Raises:
        ValueError: ``terms`` is unknown, or a size is not a positive integer.
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
        store_attention: bool | None = None,
    ):
        super().__init__()
        if terms not in ("both", "query", "key"):
            raise ValueError(f"terms must be 'both', 'query' or 'key', not {terms!r}")
        check_sizes(dim=dim, num_heads=num_heads, head_dim=head_dim)
        self.dim, self.num_heads, self.head_dim, self.terms = dim, num_heads, head_dim, terms
        self.init_std, self.init_beta = init_std, 1 / math.sqrt(head_dim) if beta is None else float(beta)
        self.w_query = nn.Parameter(torch.empty(num_heads, head_dim, dim))
        self.w_key = nn.Parameter(torch.empty(num_heads, head_dim, dim))
        self.b_query = nn.Parameter(torch.empty(num_heads, head_dim)) if bias else None
        self.b_key = nn.Parameter(torch.empty(num_heads, head_dim)) if bias else None
        if train_beta:
            self.beta = nn.Parameter(torch.empty(num_heads))
        else:
            self.register_buffer("beta", torch.empty(num_heads))
        self.all_pairs = AllPairs(self_attention, store_attention)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections from a normal distribution; set the biases to 0 and beta to its initial value."""
        nn.init.normal_(self.w_query, std=self.init_std)
        nn.init.normal_(self.w_key, std=self.init_std)
        if self.b_query is not None and self.b_key is not None:
            nn.init.zeros_(self.b_query)
            nn.init.zeros_(self.b_key)
        nn.init.constant_(self.beta, self.init_beta)

    def stacked_weights(self) -> Tensor:
        """[W^Q; W^K], (2HY, D)."""
        return torch.cat([self.w_query.flatten(0, 1), self.w_key.flatten(0, 1)])

    def stacked_bias(self) -> Tensor | None:
        """Biases of queries and keys, (2HY,), or None."""
        if self.b_query is None or self.b_key is None:
            return None
        return torch.cat([self.b_query.flatten(), self.b_key.flatten()])

    def split_heads(self, qk: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, each (..., N, H, Y), of their projections (..., N, 2HY)."""
        q, k = qk.unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(-3)
        return q, k

    def token_energy(self, g: Tensor, topology: Topology | None = None) -> Tensor:
        """Energy of each token as a query.

        Args:
            g: Layer-normalised tokens, (B, N, D) or (N, D).
            topology: Which tokens attend to which. If None, all pairs.

        Returns:
            Energies, (B, N) or (N,), in at least float32.
        """
        with no_autocast(g):
            g = at_least_float32(g)
            matrix, bias = cast_weights(self.stacked_weights(), self.stacked_bias(), g.dtype)
            q, k = self.split_heads(torch.nn.functional.linear(g, matrix, bias))  # (..., N, H, Y) each
            beta = self.beta.to(g.dtype)
            log_partition = (self.all_pairs if topology is None else topology).log_partition(q, k, beta)  # (..., N, H)
            return -(log_partition / beta).sum(-1)

    def energy(self, g: Tensor, topology: Topology | None = None) -> Tensor:
        """Attention energy of each sample (eq. 3, 13, 20, 25).

        Args:
            g: Layer-normalised tokens, (B, N, D) or (N, D).
            topology: Which tokens attend to which. If None, all pairs.

        Returns:
            Energies, (B,) or (), in at least float32.
        """
        return self.token_energy(g, topology).sum(-1)

    def forward(
        self,
        g: Tensor,
        topology: Topology | None = None,
        weights: Weights | None = None,
        query_index: Tensor | None = None,
    ) -> Tensor:
        """Return :meth:`update`, which has the same arguments."""
        return self.update(g, topology, weights, query_index)

    def update(
        self,
        g: Tensor,
        topology: Topology | None = None,
        weights: Weights | None = None,
        query_index: Tensor | None = None,
    ) -> Tensor:
        """Negative gradient -dE/dg in closed form (the two terms below eq. 8; eq. 17).

        Args:
            g: Layer-normalised tokens, (B, N, D) or (N, D).
            topology: Which tokens attend to which. If None, all pairs.
            weights: :meth:`stacked_weights` and :meth:`stacked_bias` in the dtype of ``g``. If None, made here.
            query_index: Indices of the tokens to update, (n,). All tokens still attend and are attended to. If None,
                all are updated.

        Returns:
            The update, shaped like ``g``, or (B, n, D) or (n, D) with ``query_index``.
        """
        matrix, bias = weights or cast_weights(self.stacked_weights(), self.stacked_bias(), g.dtype)  # (2HY, D), (2HY,)
        if topology is not None or self.terms != "both":
            neighbours = self.all_pairs if topology is None else topology
            return self._update_by_halves(g, neighbours, matrix, bias, query_index)
        # One product gives one tensor of queries and keys, which the kernels for all pairs take unchanged.
        qk = torch.nn.functional.linear(g, matrix, bias)  # (..., N, 2HY)
        qk = qk.unflatten(-1, (2, self.num_heads, self.head_dim))  # (..., N, 2, H, Y)
        attended = self.all_pairs.attend_packed(qk, self.beta).flatten(-3)  # (..., N, 2HY)
        return (attended if query_index is None else attended.index_select(-2, query_index)) @ matrix

    def _update_by_halves(
        self, g: Tensor, topology: Topology, matrix: Tensor, bias: Tensor | None, query_index: Tensor | None
    ) -> Tensor:
        """:meth:`update` with one product for the queries and one for the keys, without splitting or stacking."""
        matrices = matrix.chunk(2)  # (HY, D) each
        biases = (None, None) if bias is None else bias.chunk(2)
        q, k = (
            torch.nn.functional.linear(g, half, shift).unflatten(-1, (self.num_heads, self.head_dim))  # (..., N, H, Y)
            for half, shift in zip(matrices, biases, strict=True)
        )
        parts = []
        for name, term, half in zip(("query", "key"), topology.attend(q, k, self.beta), matrices, strict=True):
            if self.terms in (name, "both"):
                term = term.flatten(-2)  # (..., N, HY)
                parts.append((term if query_index is None else term.index_select(-2, query_index)) @ half)
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"self_attention={self.all_pairs.self_attention}, terms={self.terms!r}"
        )


def cast_weights(matrix: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Weights:
    """A matrix and its bias, if it has one, in ``dtype``."""
    return matrix.to(dtype), None if bias is None else bias.to(dtype)
