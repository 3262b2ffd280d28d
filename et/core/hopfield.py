"""The Hopfield network of the ET block: memories shared by both of its projections (paper eq. 5 and 9)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from et.core.precision import at_least_float32, no_autocast


class HopfieldNetwork(nn.Module):
    """E = - sum_B sum_mu G(xi_mu . g_B), with G' = r the activation function (eq. 5).

    ``relu``: r = max(h, 0), G = r^2 / 2, a classical continuous Hopfield network. ``power``: r = max(h, 0)^n,
    G = max(h, 0)^(n+1) / (n+1). ``softmax``: r = softmax over the memories of beta h, whose energy is
    - 1/beta log sum_mu exp(beta h_mu), a modern Hopfield network.

    Args:
        dim: token dimension D.
        num_memories: M (K in eq. 5).
        activation: r.
        beta: inverse temperature of ``softmax``.
        power: exponent n of ``power``.
        bias: add a bias (M,) to the hidden neurons (table 4: none).
        init_std: standard deviation of the initial memories (algorithm 1).
    """

    def __init__(
        self,
        dim: int,
        num_memories: int,
        activation: Literal["relu", "softmax", "power"] = "relu",
        beta: float = 1.0,
        power: float = 2.0,
        bias: bool = False,
        init_std: float = 0.02,
    ):
        super().__init__()
        if activation not in ("relu", "softmax", "power"):
            raise ValueError(f"activation must be 'relu', 'softmax' or 'power', not {activation!r}")
        self.dim, self.num_memories, self.activation, self.beta, self.power = dim, num_memories, activation, beta, power
        self.memories = nn.Parameter(torch.empty(num_memories, dim))
        self.bias = nn.Parameter(torch.zeros(num_memories)) if bias else None
        nn.init.normal_(self.memories, std=init_std)

    def respond(self, hidden: Tensor) -> Tensor:
        """r(h) of hidden inputs h = xi g: (..., M) -> (..., M)."""
        if self.activation == "relu":
            return F.relu(hidden)
        if self.activation == "power":
            return F.relu(hidden) ** self.power
        return torch.softmax(self.beta * hidden, dim=-1)

    def _potential(self, hidden: Tensor) -> Tensor:
        """sum_mu G(h_mu): (..., M) -> (...)."""
        if self.activation == "relu":
            return 0.5 * F.relu(hidden).square().sum(-1)
        if self.activation == "power":
            return (F.relu(hidden) ** (self.power + 1)).sum(-1) / (self.power + 1)
        return torch.logsumexp(self.beta * hidden, dim=-1) / self.beta

    def token_energy(self, g: Tensor) -> Tensor:
        """Each token's share of the energy: (B, N, D) -> (B, N) or (N, D) -> (N,); float32 or better."""
        with no_autocast(g):
            return -self._potential(F.linear(at_least_float32(g), self.memories, self.bias))

    def energy(self, g: Tensor, topology: object = None) -> Tensor:
        """E^HN of normalised tokens: (B, N, D) -> (B,), (N, D) -> (); ``topology`` plays no part (eq. 5)."""
        return self.token_energy(g).sum(-1)

    def update(self, g: Tensor, topology: object = None) -> Tensor:
        """-dE^HN/dg = r(g xi^T) xi, shaped like ``g``; no token sees another (eq. 9)."""
        return self.respond(F.linear(g, self.memories, self.bias)) @ self.memories

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_memories={self.num_memories}, activation={self.activation!r}"
