"""The ET block: layer norm, energy attention and Hopfield network with one energy (paper figure 2, eq. 6)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from et.core.attention import EnergyAttention
from et.core.hopfield import HopfieldNetwork
from et.core.norm import EnergyLayerNorm
from et.core.topology import Topology


class StackedWeights(NamedTuple):
    """What a descent multiplies with at each step, made once: a matrix and its bias (or None) for each module.

    Attributes:
        attention: [W^Q; W^K], (2HY, D), and (2HY,); None without attention.
        hopfield: the memories xi, (M, D), and (M,); None without a Hopfield network.
    """

    attention: tuple[Tensor, Tensor | None] | None
    hopfield: tuple[Tensor, Tensor | None] | None


class EnergyTransformerBlock(nn.Module):
    """E = E^ATT + E^HN over g = LayerNorm(x), and its negative gradient in closed form (eq. 6).

    Args:
        dim: token dimension D.
        num_heads: H.
        head_dim: Y.
        num_memories: M (the paper's K).
        beta, train_beta, self_attention, attention_terms, attention_bias, keep_maps: see :class:`EnergyAttention`.
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
        keep_maps: bool | None = None,
    ):
        super().__init__()
        if not (use_attention or use_hopfield):
            raise ValueError("a block needs attention, a Hopfield network, or both: one of the two must stay")
        self.dim = dim
        self.norm = EnergyLayerNorm(dim, norm_eps, norm_bias)
        self.attention = (
            EnergyAttention(
                dim, num_heads, head_dim, beta=beta, train_beta=train_beta, self_attention=self_attention,
                bias=attention_bias, terms=attention_terms, init_std=attention_init_std, keep_maps=keep_maps,
            )
            if use_attention
            else None
        )  # fmt: skip
        self.hopfield = (
            HopfieldNetwork(
                dim,
                num_memories,
                activation,
                beta=hopfield_beta,
                power=hopfield_power,
                bias=hopfield_bias,
                init_std=hopfield_init_std,
            )
            if use_hopfield
            else None
        )

    def stacked_weights(self, dtype: torch.dtype | None = None) -> StackedWeights:
        """The weights of both modules in ``dtype``: what a descent needs at every one of its steps."""
        attention, hopfield = self.attention, self.hopfield

        def cast(matrix: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return matrix.to(dtype), None if bias is None else bias.to(dtype)

        return StackedWeights(
            None if attention is None else cast(attention.stacked_weights(), attention.stacked_bias()),
            None if hopfield is None else cast(hopfield.memories, hopfield.bias),
        )

    def update(
        self,
        g: Tensor,
        topology: Topology | None = None,
        weights: StackedWeights | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """-dE/dg, shaped like ``g``: [P K | P^T Q] [W^Q; W^K] + r(g xi^T) xi (eq. 6, 9, 17).

        Args:
            g: normalised tokens.
            topology: who attends to whom; all pairs where not given.
            weights: :meth:`stacked_weights`, for callers that take more than one step with them.
            wanted: (n,) numbers of the tokens whose update is wanted; all where not given.
        """
        of_attention, of_hopfield = weights or self.stacked_weights(g.dtype)
        own = g if wanted is None else g.index_select(-2, wanted)
        if self.attention is None:
            return self.hopfield.update(own, weights=of_hopfield)
        update = self.attention.update(g, topology, of_attention, wanted)
        return update if self.hopfield is None else update + self.hopfield.update(own, weights=of_hopfield)

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
