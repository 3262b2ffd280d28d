"""The Hopfield network of the ET block: memories shared by both of its projections (paper eq. 5 and 9)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from et.core.arguments import check_sizes
from et.core.precision import at_least_float32, differentiable_gradient, no_autocast, watched
from et.core.topology import Topology


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
        check_sizes(dim=dim, num_memories=num_memories)
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

    def energy(self, g: Tensor, topology: Topology | None = None) -> Tensor:
        """E^HN of normalised tokens, whatever the topology: (B, N, D) -> (B,), (N, D) -> () (eq. 5)."""
        return self.token_energy(g).sum(-1)

    def update(
        self,
        g: Tensor,
        topology: Topology | None = None,
        weights: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """-dE^HN/dg = r(g xi^T) xi, shaped like ``g`` (eq. 9).

        ``topology`` stands here as it does in attention and changes nothing: no token sees another. ``weights`` are
        memories and bias, for callers that have them in another dtype.
        """
        memories, bias = weights or (self.memories, self.bias)
        if self.activation == "relu":
            return relu_response(g, memories, bias)
        return self.respond(F.linear(g, memories, bias)) @ memories

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_memories={self.num_memories}, activation={self.activation!r}"


def relu_response(g: Tensor, memories: Tensor, bias: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
    """r(g xi^T) xi for the ReLU: (..., D), (M, D) -> (..., D).

    Args:
        g, memories, bias: tokens, xi, and what is added to the hidden inputs (M,).
        kept: hidden neurons that take part, (..., M) bool, for dropout; all where not given.
    """
    if watched(g):
        return _plain_relu_response(g, memories, bias, kept)
    return _ReluResponse.apply(g, memories, bias, kept)


def _plain_relu_response(g: Tensor, memories: Tensor, bias: Tensor | None, kept: Tensor | None) -> Tensor:
    response = F.relu(F.linear(g, memories, bias))
    return (response if kept is None else response * kept) @ memories


class _ReluResponse(Function):
    """Keeps only r, from which one can tell who took part, and adds the memories' two gradients within one product."""

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
        if torch.is_grad_enabled():  # create_graph=True: this gradient will itself be differentiated
            inputs = ctx.saved_tensors[:3]
            outputs = _plain_relu_response(*inputs, ctx.kept)
            return *differentiable_gradient(outputs, inputs, ctx.needs_input_grad[:3], grad), None
        with no_autocast(grad):
            return *_relu_response_gradient(*ctx.saved_tensors, grad, ctx.needs_input_grad), None


def _relu_response_gradient(
    g: Tensor, memories: Tensor, bias: Tensor | None, response: Tensor, grad: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of g, the memories and the bias, those that are needed."""
    grad_hidden = (grad @ memories.mT).mul_(response > 0)
    grad_memories = grad_bias = None
    if needed[1]:
        rows = [x.reshape(-1, x.shape[-1]) for x in (grad_hidden, g, response, grad)]
        grad_memories = (rows[0].mT @ rows[1]).addmm_(rows[2].mT, rows[3])
    if needed[2]:
        grad_bias = grad_hidden.flatten(0, -2).sum(0)
    return grad_hidden @ memories if needed[0] else None, grad_memories, grad_bias
