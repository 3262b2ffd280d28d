"""Blocks with the golden weights, and random ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from et.core import EnergyTransformerBlock


@pytest.fixture
def core(golden) -> dict[str, Tensor]:
    return golden("core")


@pytest.fixture
def golden_block(core) -> Callable[..., EnergyTransformerBlock]:
    """The block of core.npz; arguments as for EnergyTransformerBlock."""

    def build(**arguments) -> EnergyTransformerBlock:
        heads, head_dim, dim = core["Wq"].shape
        block = EnergyTransformerBlock(dim, heads, head_dim, len(core["Xi"]), **arguments).double()
        with torch.no_grad():
            block.attention.w_query.copy_(core["Wq"])
            block.attention.w_key.copy_(core["Wk"])
            block.attention.beta.copy_(core["beta"])
            block.hopfield.memories.copy_(core["Xi"])
            block.norm.gamma.copy_(core["gamma"])
            block.norm.delta.copy_(core["delta"])
        return block

    return build


@pytest.fixture
def random_block() -> Callable[..., EnergyTransformerBlock]:
    """A block with weights of order one in float64, so that nothing is negligible."""

    def build(dim: int = 12, heads: int = 2, head_dim: int = 5, memories: int = 16, **arguments):
        torch.manual_seed(0)
        block = EnergyTransformerBlock(dim, heads, head_dim, memories, **arguments).double()
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        with torch.no_grad():
            block.norm.gamma.fill_(1.2)
        return block

    return build
