"""Parameters of a block as those of et/core/reference.py."""

from __future__ import annotations

from et.core import EnergyTransformerBlock, reference


def weights_of(block: EnergyTransformerBlock) -> reference.Weights:
    """The block's own parameters, so that gradients with respect to them can be compared."""
    attention = block.attention
    return reference.Weights(
        block.norm.gamma, block.norm.delta, attention.w_query, attention.w_key, attention.beta, block.hopfield.memories
    )
