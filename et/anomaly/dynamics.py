"""Dynamics of the anomaly models: the steps between their first tokens and their head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from et.anomaly.released import CLAMP, ReleasedBlock
from et.anomaly.scoring import Step
from et.core import EdgeTopology, EnergyTransformerBlock, descend
from et.core.arguments import check_sizes


def reached_nodes(topologies: Sequence[EdgeTopology]) -> list[Tensor]:
    """For each relation, mask of the nodes with an edge in it or in an earlier one, (N,) bool."""
    return list(accumulate((topology.edges.degree > 0 for topology in topologies), torch.logical_or))


class PaperDynamics(nn.Module):
    """T steps x <- x - dE/dg along the edges in each block, then a layer norm (eq. 15-20). The paper has one block."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        num_memories: int,
        *,
        steps: int,
        step_size: float,
        num_blocks: int = 1,
        **parts: bool,
    ):
        super().__init__()
        check_sizes(num_blocks=num_blocks)
        self.steps, self.step_size = steps, step_size
        first, *others = (
            EnergyTransformerBlock(dim, num_heads, head_dim, num_memories, train_beta=True, **parts)
            for _ in range(num_blocks)
        )
        self.block, self.later_blocks = first, nn.ModuleList(others)

    @property
    def blocks(self) -> list[EnergyTransformerBlock]:
        """The blocks, in the order in which they descend."""
        return [self.block, *self.later_blocks]

    def reset_parameters(self) -> None:
        """Initialise all parameters again."""
        for block in self.blocks:
            block.reset_parameters()

    def forward(self, x: Tensor, topologies: Sequence[EdgeTopology]) -> list[Tensor]:
        """g_T of each relation, (n, D), from x_1."""
        return [self.last(self.descend(x, topology)) for topology in topologies]

    def descend(self, x: Tensor, topology: EdgeTopology) -> Tensor:
        """x_T of one relation, (n, D), from x_1."""
        for block in self.blocks:
            x = descend(block, x, self.steps, self.step_size, topology).x
        return x

    def first(self, x: Tensor) -> Tensor:
        """g_1 of x_1, (n, D)."""
        return self.block.norm(x)

    def last(self, x: Tensor, reached: Tensor | None = None) -> Tensor:
        """g_T of x_T, (n, D)."""
        return self.blocks[-1].norm(x)

    def energies(self, first: Tensor, last: Tensor, topology: EdgeTopology) -> Tensor:
        """Energies of each token at g_1 in the first block and at g_T in the last, by module: (n, 2 or 4).

        Args:
            first, last: g_1 and g_T of one relation, (n, D).
        """
        found = []
        for block, g in ((self.block, first), (self.blocks[-1], last)):
            if block.attention is not None:
                found.append(block.attention.token_energy(g, topology))
            if block.hopfield is not None:
                found.append(block.hopfield.token_energy(g))
        return torch.stack(found, dim=-1)

    def as_steps(self) -> list[Step]:
        """The T steps of each block, for :func:`et.anomaly.scoring.take_step`."""
        return [step for block in self.blocks for step in [self._step(block)] * self.steps]

    def _step(self, block: EnergyTransformerBlock) -> Step:
        attention, hopfield = block.attention, block.hopfield
        return Step(
            norm=block.norm,
            w_query=attention.w_query if attention else None,
            w_key=attention.w_key if attention else None,
            beta=attention.beta if attention else None,
            hopfield=hopfield.update if hopfield else None,
            step_size=self.step_size,
        )


class ReleasedDynamics(nn.Module):
    """T - 1 steps of one block, then one step of another."""

    def __init__(
        self, dim: int, num_heads: int, head_dim: int, num_memories: int, *, steps: int, dropout: float, **parts: bool
    ):
        super().__init__()
        if steps < 1:
            raise ValueError(f"the released model takes at least 1 step, not {steps}")
        self.steps = steps
        sizes = (dim, num_heads, head_dim, num_memories, dropout)
        self.block = ReleasedBlock(*sizes, **parts) if steps > 1 else None
        self.last_block = ReleasedBlock(*sizes, **parts)

    def reset_parameters(self) -> None:
        """Initialise all parameters again."""
        for block in (self.block, self.last_block):
            if block is not None:
                block.reset_parameters()

    @property
    def step_blocks(self) -> list[ReleasedBlock]:
        """The block of each step."""
        return [self.block] * (self.steps - 1) + [self.last_block]

    def forward(self, x: Tensor, topologies: Sequence[EdgeTopology]) -> list[Tensor]:
        """x_T of each relation, (n, D). Each relation starts from x_1 and from the attention updates of the
        previous ones.
        """
        finals, carried = [], None
        for topology, reached in zip(topologies, reached_nodes(topologies), strict=True):
            after = x
            for block in self.step_blocks:
                after, carried = block.step(after, topology, carried)
            finals.append(self.last(after, reached))
        return finals

    def first(self, x: Tensor) -> Tensor:
        """x_1, unchanged."""
        return x

    def last(self, x: Tensor, reached: Tensor) -> Tensor:
        """x_T (n, D); 0 for a node that no relation has ``reached`` (n,), where the released code divides 0 by 0."""
        if self.last_block.w_query is None or reached.all():
            return x
        return torch.where(reached[:, None], x, torch.zeros_like(x))

    def as_steps(self) -> list[Step]:
        """The T steps, for :func:`et.anomaly.scoring.take_step`; without dropout."""
        return [
            Step(
                norm=block.norm,
                w_query=block.w_query,
                w_key=block.w_key,
                beta=None if block.w_query is None else block.betas(),
                clamp=CLAMP,
                hopfield=block.hopfield_update if block.memories is not None else None,
                from_normalised=True,
            )
            for block in self.step_blocks
        ]
