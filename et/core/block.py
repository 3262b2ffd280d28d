"""The ET block: layer norm, energy attention and Hopfield network with one energy (paper figure 2, eq. 6)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from et.core.attention import EnergyAttention
from et.core.hopfield import HopfieldNetwork
from et.core.norm import EnergyLayerNorm
from et.core.topology import Topology


class StackedWeights(NamedTuple):
    """All projections of the block as one matrix [W^Q; W^K; xi], (2HY + M, D), and their biases, (2HY + M,) or None."""

    matrix: Tensor
    bias: Tensor | None


class EnergyTransformerBlock(nn.Module):
    """E = E^ATT + E^HN over g = LayerNorm(x), and its negative gradient in closed form (eq. 6).

    Args:
        dim: token dimension D.
        num_heads: H.
        head_dim: Y.
        num_memories: M (the paper's K).
        beta, train_beta, self_attention, attention_terms, attention_bias: see :class:`EnergyAttention`.
        activation, hopfield_beta, hopfield_power, hopfield_bias: see :class:`HopfieldNetwork`.
        norm_eps, norm_bias: see :class:`EnergyLayerNorm`.
        use_attention, use_hopfield: leave a module out (tables 13 and 14); ``attention`` or ``hopfield`` is then None.
        attention_init_std, hopfield_init_std: initial standard deviations (algorithm 1: 0.02 for both).

    Raises:
        ValueError: both modules are left out.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        num_memories: int,
        *,
        beta: float | None = None,
        train_beta: bool = False,
        self_attention: bool = False,
        attention_terms: Literal["both", "query", "key"] = "both",
        attention_bias: bool = False,
        activation: Literal["relu", "softmax", "power"] = "relu",
        hopfield_beta: float = 1.0,
        hopfield_power: float = 2.0,
        hopfield_bias: bool = False,
        norm_eps: float = 1e-5,
        norm_bias: bool = True,
        use_attention: bool = True,
        use_hopfield: bool = True,
        attention_init_std: float = 0.02,
        hopfield_init_std: float = 0.02,
    ):
        super().__init__()
        if not (use_attention or use_hopfield):
            raise ValueError("a block needs attention, a Hopfield network, or both: one of the two must stay")
        self.dim = dim
        self.norm = EnergyLayerNorm(dim, norm_eps, norm_bias)
        self.attention = (
            EnergyAttention(
                dim, num_heads, head_dim, beta, train_beta, self_attention, attention_bias, attention_terms,
                attention_init_std,
            )
            if use_attention
            else None
        )  # fmt: skip
        self.hopfield = (
            HopfieldNetwork(
                dim, num_memories, activation, hopfield_beta, hopfield_power, hopfield_bias, hopfield_init_std
            )
            if use_hopfield
            else None
        )

    def stacked_weights(self, dtype: torch.dtype | None = None) -> StackedWeights:
        """All projections stacked once, in ``dtype``: what a descent needs at every one of its steps."""
        parts = [(self.attention.stacked_weights(), self.attention.stacked_bias())] if self.attention else []
        parts += [(self.hopfield.memories, self.hopfield.bias)] if self.hopfield else []
        matrix = torch.cat([matrix for matrix, _ in parts]).to(dtype)
        if all(bias is None for _, bias in parts):
            return StackedWeights(matrix, None)
        biases = [matrix.new_zeros(len(matrix)) if bias is None else bias for matrix, bias in parts]
        return StackedWeights(matrix, torch.cat(biases).to(dtype))

    def update(self, g: Tensor, topology: Topology | None = None, weights: StackedWeights | None = None) -> Tensor:
        """-dE/dg, shaped like ``g``: [P K | P^T Q | r(g xi^T)] [W^Q; W^K; xi] (eq. 6, 9, 17).

        ``weights`` are :meth:`stacked_weights`, for callers that take more than one step with them.
        """
        matrix, bias = weights or self.stacked_weights(g.dtype)
        hidden = F.linear(g, matrix, bias)
        if self.attention is None:
            return self.hopfield.respond(hidden) @ matrix
        inner = 2 * self.attention.num_heads * self.attention.head_dim
        # One split: slices would each get a gradient of the full width, mostly zeros, to be added up.
        qk, memories = hidden.split([inner, hidden.shape[-1] - inner], dim=-1)
        mixed = self.attention.mix(*self.attention.split_heads(qk), topology)
        if self.hopfield is not None:
            mixed = (*mixed, self.hopfield.respond(memories))
        return torch.cat(mixed, dim=-1) @ matrix

    def module_energies(self, g: Tensor, topology: Topology | None = None) -> tuple[Tensor, Tensor]:
        """(E^ATT, E^HN), each (B,) or (); zero for a module that is left out."""
        attention = self.attention.energy(g, topology) if self.attention else None
        hopfield = self.hopfield.energy(g) if self.hopfield else None
        if attention is None:
            attention = torch.zeros_like(hopfield)
        return attention, torch.zeros_like(attention) if hopfield is None else hopfield

    def energy(self, g: Tensor, topology: Topology | None = None) -> Tensor:
        """E = E^ATT + E^HN of normalised tokens: (B, N, D) -> (B,), (N, D) -> (); float32 or better (eq. 6)."""
        attention, hopfield = self.module_energies(g, topology)
        return attention + hopfield
