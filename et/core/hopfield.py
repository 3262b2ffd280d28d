"""The Hopfield network of the ET block: memories shared by both of its projections (paper eq. 5 and 9)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from et.core.arguments import check_sizes
from et.core.precision import at_least_float32, differentiable_gradient, needs_plain_operations, no_autocast
from et.core.topology import Topology


class HopfieldNetwork(nn.Module):
    r"""Hopfield network with tied weights, from `Energy Transformer <https://arxiv.org/abs/2302.07253>`_ (eq. 5, 9).

    .. math::
        E^{HN} = - \sum_B \sum_\mu G(\xi_\mu \cdot g_B), \qquad
        -\frac{\partial E^{HN}}{\partial g_B} = \sum_\mu \xi_\mu\, r(\xi_\mu \cdot g_B), \qquad r = G'

    The activation r is one of:

    * ``"relu"``: r = max(h, 0), G = r^2 / 2: a classical continuous Hopfield network.
    * ``"power"``: r = max(h, 0)^n, G = max(h, 0)^(n+1) / (n+1).
    * ``"softmax"``: r = softmax of beta h over the memories, sum of G = 1/beta log sum exp(beta h): a modern Hopfield
      network.

    Calling the module computes :meth:`update`.

    Args:
        dim: Token dimension D.
        num_memories: Number of memories M (paper: K).
        activation: Activation r.
        beta: Inverse temperature of ``"softmax"``.
        power: Exponent n of ``"power"``.
        bias: If True, add a bias to the hidden neurons (table 4: False).
        init_std: Standard deviation of the initial memories (algorithm 1: 0.02).

    Attributes:
        memories: Memories xi, (M, D).
        bias: Bias of the hidden neurons, (M,), or None.

    Raises:
        ValueError: ``activation`` is unknown, or a size is not a positive integer.
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
        check_sizes(dim=dim, num_memories=num_memories)
        self.dim, self.num_memories, self.activation, self.beta, self.power = dim, num_memories, activation, beta, power
        self.init_std = init_std
        self.memories = nn.Parameter(torch.empty(num_memories, dim))
        self.bias = nn.Parameter(torch.empty(num_memories)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the memories from a normal distribution; set the bias to 0."""
        nn.init.normal_(self.memories, std=self.init_std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def respond(self, hidden: Tensor) -> Tensor:
        """Activations r(h) of hidden inputs h = xi g: (..., M) -> (..., M)."""
        if self.activation == "relu":
            return F.relu(hidden)
        if self.activation == "power":
            return F.relu(hidden) ** self.power
        return torch.softmax(self.beta * hidden, dim=-1)

    def _potential(self, hidden: Tensor) -> Tensor:
        """Sum of G(h) over the memories: (..., M) -> (...)."""
        if self.activation == "relu":
            return 0.5 * F.relu(hidden).square().sum(-1)
        if self.activation == "power":
            return (F.relu(hidden) ** (self.power + 1)).sum(-1) / (self.power + 1)
        return torch.logsumexp(self.beta * hidden, dim=-1) / self.beta

    def token_energy(self, g: Tensor) -> Tensor:
        """Energy of each token.

        Args:
            g: Layer-normalised tokens, (B, N, D) or (N, D).

        Returns:
            Energies, (B, N) or (N,), in at least float32.
        """
        with no_autocast(g):
            g = at_least_float32(g)
            bias = None if self.bias is None else self.bias.to(g.dtype)
            return -self._potential(F.linear(g, self.memories.to(g.dtype), bias))  # hidden inputs: (..., N, M)

    def energy(self, g: Tensor, topology: Topology | None = None) -> Tensor:
        """Hopfield energy of each sample (eq. 5).

        Args:
            g: Layer-normalised tokens, (B, N, D) or (N, D).
            topology: Ignored; here so that attention and Hopfield network have the same arguments.

        Returns:
            Energies, (B,) or (), in at least float32.
        """
        return self.token_energy(g).sum(-1)

    def forward(
        self, g: Tensor, topology: Topology | None = None, weights: tuple[Tensor, Tensor | None] | None = None
    ) -> Tensor:
        """Return :meth:`update`, which has the same arguments."""
        return self.update(g, topology, weights)

    def update(
        self, g: Tensor, topology: Topology | None = None, weights: tuple[Tensor, Tensor | None] | None = None
    ) -> Tensor:
        """Negative gradient -dE/dg = r(g xi^T) xi (eq. 9).

        Args:
            g: Layer-normalised tokens, (..., D).
            topology: Ignored: no token sees another.
            weights: Memories and bias in the dtype of ``g``. If None, made here.

        Returns:
            The update, shaped like ``g``.
        """
        if weights is None:
            weights = self.memories.to(g.dtype), None if self.bias is None else self.bias.to(g.dtype)
        memories, bias = weights  # (M, D), (M,)
        if self.activation == "relu":
            return relu_response(g, memories, bias)
        return self.respond(F.linear(g, memories, bias)) @ memories  # (..., M) @ (M, D)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_memories={self.num_memories}, activation={self.activation!r}"


def relu_response(g: Tensor, memories: Tensor, bias: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
    """Hopfield update r(g xi^T) xi with r = ReLU.

    Args:
        g: Tokens, (..., D).
        memories: Memories xi, (M, D).
        bias: Bias of the hidden neurons, (M,), or None.
        kept: Dropout mask of the hidden neurons, (..., M) bool. If None, all are kept.

    Returns:
        The update, (..., D).
    """
    if needs_plain_operations(g):
        return _plain_relu_response(g, memories, bias, kept)
    return _ReluResponse.apply(g, memories, bias, kept)


def _plain_relu_response(g: Tensor, memories: Tensor, bias: Tensor | None, kept: Tensor | None) -> Tensor:
    response = F.relu(F.linear(g, memories, bias))
    return (response if kept is None else response * kept) @ memories


class _ReluResponse(Function):
    """Saves only r for the backward pass, and accumulates the two gradients of the memories within one product."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, memories: Tensor, bias: Tensor | None, kept: Tensor | None) -> Tensor:
        response = F.linear(g, memories, bias).relu_()
        if kept is not None:
            response.mul_(kept)
        ctx.save_for_backward(g, memories, bias, response)
        ctx.kept = kept
        return response @ memories

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        g, memories, bias, response = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: this gradient will itself be differentiated
            outputs = _plain_relu_response(g, memories, bias, ctx.kept)
            return *differentiable_gradient(outputs, (g, memories, bias), ctx.needs_input_grad[:3], grad), None
        with no_autocast(grad):
            return *_relu_response_gradient(g, memories, bias, response, grad, ctx.needs_input_grad), None


def _relu_response_gradient(
    g: Tensor, memories: Tensor, bias: Tensor | None, response: Tensor, grad: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of g, the memories and the bias; None for those not needed."""
    grad_hidden = (grad @ memories.mT).mul_(response > 0)
    grad_memories = grad_bias = None
    if needed[1]:
        rows = [x.reshape(-1, x.shape[-1]) for x in (grad_hidden, g, response, grad)]
        grad_memories = (rows[0].mT @ rows[1]).addmm_(rows[2].mT, rows[3])
    if needed[2]:
        grad_bias = grad_hidden.flatten(0, -2).sum(0)
    return grad_hidden @ memories if needed[0] else None, grad_memories, grad_bias
