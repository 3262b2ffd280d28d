"""The ET block: layer norm, energy attention and Hopfield network with one energy (paper figure 2, eq. 6)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from et.core.attention import EnergyAttention, cast_weights
from et.core.hopfield import HopfieldNetwork
from et.core.norm import EnergyLayerNorm
from et.core.precision import at_least_float32, compute_dtype, no_autocast, restore_dtype
from et.core.topology import Topology


class StackedWeights(NamedTuple):
    """Weights that every step of a descent multiplies with, stacked and cast once: (matrix, bias) of each module.

    Attributes:
        attention: [W^Q; W^K], (2HY, D), and its bias, (2HY,) or None; None without attention.
        hopfield: Memories xi, (M, D), and their bias, (M,) or None; None without a Hopfield network.
    """

    attention: tuple[Tensor, Tensor | None] | None
    hopfield: tuple[Tensor, Tensor | None] | None


class EnergyTransformerBlock(nn.Module):
    r"""Block of the `Energy Transformer <https://arxiv.org/abs/2302.07253>`_: one energy of normalised tokens (eq. 6).

    .. math::
        \tau \frac{dx}{dt} = -\frac{\partial E}{\partial g}, \qquad E(g) = E^{ATT}(g) + E^{HN}(g),
        \qquad g = \mathrm{LayerNorm}(x)

    Calling the block computes the right-hand side at tokens x. One step of the descent is ``x + step_size * block(x)``.

    Args:
        dim: Token dimension D.
        num_heads: Number of heads H.
        head_dim: Dimension Y of a head's queries and keys.
        num_memories: Number of memories M (paper: K).
        beta, train_beta, self_attention, attention_terms, attention_bias, store_attention: See
            :class:`EnergyAttention`.
        activation, hopfield_beta, hopfield_power, hopfield_bias: See :class:`HopfieldNetwork`.
        norm_eps, norm_bias: See :class:`EnergyLayerNorm`.
        use_attention, use_hopfield: If False, leave the module out (tables 13 and 14); the attribute ``attention`` or
            ``hopfield`` is then None.
        attention_init_std, hopfield_init_std: Standard deviations of the initial weights (algorithm 1: 0.02 for both).

    Raises:
        ValueError: Both modules are left out.
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
        store_attention: bool | None = None,
    ):
        super().__init__()
        if not (use_attention or use_hopfield):
            raise ValueError("a block needs attention, a Hopfield network, or both: one of the two must stay")
        self.dim = dim
        self.norm = EnergyLayerNorm(dim, norm_eps, norm_bias)
        self.attention = (
            EnergyAttention(
                dim, num_heads, head_dim, beta=beta, train_beta=train_beta, self_attention=self_attention,
                bias=attention_bias, terms=attention_terms, init_std=attention_init_std,
                store_attention=store_attention,
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

    def reset_parameters(self) -> None:
        """Initialise the parameters of all modules again."""
        for module in (self.norm, self.attention, self.hopfield):
            if module is not None:
                module.reset_parameters()

    def stacked_weights(self, dtype: torch.dtype | None = None) -> StackedWeights:
        """Weights of both modules, cast to ``dtype`` (None: their own), for use in several steps."""
        attention, hopfield = self.attention, self.hopfield
        return StackedWeights(
            None if attention is None else cast_weights(attention.stacked_weights(), attention.stacked_bias(), dtype),
            None if hopfield is None else cast_weights(hopfield.memories, hopfield.bias, dtype),
        )

    def forward(
        self,
        x: Tensor,
        topology: Topology | None = None,
        weights: StackedWeights | None = None,
        query_index: Tensor | None = None,
    ) -> Tensor:
        """Descent direction -dE/dg at g = LayerNorm(x) (right-hand side of eq. 6).

        Args:
            x: Tokens, (B, N, D) or (N, D).
            topology, weights, query_index: See :meth:`update`. Matrix products run in the dtype of ``weights``.

        Returns:
            The direction, shaped like ``x``, or (B, n, D) or (n, D) with ``query_index``.
        """
        if weights is not None:
            return self._direction(x, topology, weights, query_index)
        dtype = compute_dtype(x)
        with no_autocast(x):
            direction = self._direction(at_least_float32(x), topology, self.stacked_weights(dtype), query_index)
        return restore_dtype(direction, x)

    def _direction(
        self, x: Tensor, topology: Topology | None, weights: StackedWeights, query_index: Tensor | None
    ) -> Tensor:
        matrix, _ = weights.attention or weights.hopfield  # type: ignore[misc]  # one of the two is there
        return self.update(self.norm(x).to(matrix.dtype), topology, weights, query_index)

    def update(
        self,
        g: Tensor,
        topology: Topology | None = None,
        weights: StackedWeights | None = None,
        query_index: Tensor | None = None,
    ) -> Tensor:
        """Negative gradient -dE/dg in closed form: ``[P K | P^T Q] [W^Q; W^K] + r(g xi^T) xi`` (eq. 6, 9, 17).

        Args:
            g: Layer-normalised tokens, (B, N, D) or (N, D).
            topology: Which tokens attend to which. If None, all pairs.
            weights: :meth:`stacked_weights` in the dtype of ``g``. If None, made here.
            query_index: Indices of the tokens to update, (n,). All tokens still attend and are attended to. If None,
                all are updated.

        Returns:
            The update, shaped like ``g``, or (B, n, D) or (n, D) with ``query_index``.
        """
        attention_weights, hopfield_weights = weights or self.stacked_weights(g.dtype)
        selected = g if query_index is None else g.index_select(-2, query_index)  # (..., n, D)
        # Modules are called, not their update, so that forward hooks see every step.
        if self.attention is None:
            return self.hopfield(selected, None, hopfield_weights)  # type: ignore[misc]  # then it is there
        update = self.attention(g, topology, attention_weights, query_index)  # (..., n, D)
        return update if self.hopfield is None else update + self.hopfield(selected, None, hopfield_weights)

    def module_energies(self, g: Tensor, topology: Topology | None = None) -> tuple[Tensor, Tensor]:
        """Attention and Hopfield energy of each sample.

        Args:
            g: Layer-normalised tokens, (B, N, D) or (N, D).
            topology: Which tokens attend to which. If None, all pairs.

        Returns:
            The two energies, each (B,) or (), in at least float32; 0 for a module that is left out.
        """
        attention = self.attention.energy(g, topology) if self.attention else None
        hopfield = self.hopfield.energy(g) if self.hopfield else None
        if attention is None:
            attention = torch.zeros_like(hopfield)  # type: ignore[arg-type]  # one of the two is there
        return attention, torch.zeros_like(attention) if hopfield is None else hopfield

    def energy(self, g: Tensor, topology: Topology | None = None) -> Tensor:
        """Total energy of each sample (eq. 6).

        Args:
            g: Layer-normalised tokens, (B, N, D) or (N, D).
            topology: Which tokens attend to which. If None, all pairs.

        Returns:
            Energies, (B,) or (), in at least float32.
        """
        attention, hopfield = self.module_energies(g, topology)
        return attention + hopfield
