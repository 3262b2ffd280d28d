"""The ET block as a graph layer with the interface of torch_geometric's convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from et.core import EdgeTopology, EnergyTransformerBlock, descend
from et.core.arguments import check_sizes


class EnergyConv(nn.Module):
    """x <- x - alpha dE/dg, ``steps`` times, with energy attention along the edges (eq. 6, 17-20).

    Unlike other convolutions it keeps the width of its nodes: it moves them downhill in an energy of which they are the
    arguments. A linear layer before or after it changes the width.

    Args:
        in_channels: Width of a node, D.
        heads, head_dim: Number of attention heads H, and their dimension Y.
        memories: Number of memories M of the Hopfield network (paper: K).
        steps: Number of steps T.
        step_size: Step size (paper: alpha).
        block: Further arguments of :class:`et.core.EnergyTransformerBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        heads: int,
        head_dim: int,
        memories: int,
        steps: int = 1,
        step_size: float = 0.1,
        **block: object,
    ):
        super().__init__()
        check_sizes(in_channels=in_channels, heads=heads, head_dim=head_dim, memories=memories)
        check_sizes(minimum=0, steps=steps)
        self.in_channels = self.out_channels = in_channels
        self.steps, self.step_size = steps, step_size
        self.block = EnergyTransformerBlock(in_channels, heads, head_dim, memories, **block)

    def reset_parameters(self) -> None:
        """Initialise all parameters again."""
        self.block.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor | EdgeTopology) -> Tensor:
        """New nodes, (N, D), like ``x``.

        Args:
            x: (N, D).
            edge_index: (2, E) as in torch_geometric, source (key) before target (query); or an EdgeTopology made from
                it, which saves sorting the edges again where several layers, or epochs, share a graph.

        Raises:
            ValueError: The edges do not fit the nodes.
        """
        topology = edge_index if isinstance(edge_index, EdgeTopology) else EdgeTopology(edge_index, x.shape[0])
        return descend(self.block, x, self.steps, self.step_size, topology).x.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, steps={self.steps}, step_size={self.step_size}"
