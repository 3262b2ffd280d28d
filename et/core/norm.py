"""Layer normalisation as the derivative of a Lagrangian (paper eq. 1 and 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from et.core.arguments import check_sizes
from et.core.precision import at_least_float32, restore_dtype


class EnergyLayerNorm(nn.Module):
    r"""Layer norm with one scalar gain, from `Energy Transformer <https://arxiv.org/abs/2302.07253>`_ (eq. 1).

    .. math::
        g_i = \gamma \frac{x_i - \bar x}{\sqrt{\frac{1}{D} \sum_j (x_j - \bar x)^2 + \epsilon}} + \delta_i

    The scalar gain makes g the gradient of a Lagrangian (eq. 2). Its Hessian (eq. 8) is positive semi-definite for
    gamma >= 0, so the energy cannot rise along the descent in continuous time (eq. 7).

    Args:
        dim: Token dimension D.
        eps: Added to the variance (paper: epsilon).
        bias: If False, there is no delta.

    Attributes:
        gamma: Gain, ().
        delta: Bias, (D,), or None.

    Raises:
        ValueError: ``dim`` is not a positive integer.
    """

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True):
        super().__init__()
        check_sizes(dim=dim)
        self.dim, self.eps = dim, eps
        self.gamma = nn.Parameter(torch.empty(()))
        self.delta = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set gamma to 1 and delta to 0."""
        nn.init.ones_(self.gamma)
        if self.delta is not None:
            nn.init.zeros_(self.delta)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise tokens (eq. 1), in at least float32.

        Args:
            x: Tokens, (..., D).

        Returns:
            Normalised tokens g, (..., D), in the dtype of ``x``; float32 under autocast.
        """
        tokens = at_least_float32(x)
        gamma = self.gamma.to(tokens.dtype).expand(self.dim)  # (D,)
        delta = None if self.delta is None else self.delta.to(tokens.dtype)
        return restore_dtype(F.layer_norm(tokens, (self.dim,), gamma, delta, self.eps), x)

    def lagrangian(self, x: Tensor) -> Tensor:
        """Lagrangian L with dL/dx = g (eq. 2).

        Args:
            x: Tokens, (..., D).

        Returns:
            One value per token, (...), in at least float32.
        """
        x = at_least_float32(x)
        std = torch.sqrt(x.var(dim=-1, unbiased=False) + self.eps)  # (...)
        value = self.dim * self.gamma.to(x.dtype) * std
        return value if self.delta is None else value + x @ self.delta.to(x.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, eps={self.eps}, bias={self.delta is not None}"
