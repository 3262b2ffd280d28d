"""Layer normalisation as the derivative of a Lagrangian (paper eq. 1 and 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from et.core.arguments import check_sizes
from et.core.precision import at_least_float32


class EnergyLayerNorm(nn.Module):
    """g = gamma (x - mean) / sqrt(var + eps) + delta, with one scalar gain for all elements (eq. 1).

    The scalar gain is what makes g the gradient of a Lagrangian (eq. 2). Its Hessian (eq. 8) is positive semi-definite
    for gamma >= 0, and then the energy cannot rise along the descent in continuous time (eq. 7).

    Args:
        dim: token dimension D.
        eps: the paper's epsilon.
        bias: whether delta is there at all (``False``: delta = 0).
    """

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True):
        super().__init__()
        check_sizes(dim=dim)
        self.dim, self.eps = dim, eps
        self.gamma = nn.Parameter(torch.ones(()))
        self.delta = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D); half precision input is normalised in float32 (eq. 1)."""
        x = at_least_float32(x)
        delta = None if self.delta is None else self.delta.to(x.dtype)
        return F.layer_norm(x, (self.dim,), self.gamma.to(x.dtype).expand(self.dim), delta, self.eps)

    def lagrangian(self, x: Tensor) -> Tensor:
        """L with dL/dx = g (eq. 2), one value a token: (..., D) -> (...)."""
        x = at_least_float32(x)
        std = torch.sqrt(x.var(dim=-1, unbiased=False) + self.eps)
        value = self.dim * self.gamma * std
        return value if self.delta is None else value + x @ self.delta

    def extra_repr(self) -> str:
        return f"dim={self.dim}, eps={self.eps}, bias={self.delta is not None}"
