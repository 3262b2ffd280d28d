"""The Energy Transformer as one module: tokens in, tokens out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from et.core.arguments import check_sizes
from et.core.block import EnergyTransformerBlock
from et.core.descent import descend
from et.core.topology import Topology


class EnergyTransformer(nn.Module):
    r"""`Energy Transformer <https://arxiv.org/abs/2302.07253>`_: T steps down the energy of one block (eq. 6, 27).

    .. math::
        x_{t+1} = x_t - \alpha \frac{\partial E}{\partial g}\Big|_{g = \mathrm{LayerNorm}(x_t)},
        \qquad E = E^{ATT} + E^{HN}

    The module maps tokens to tokens and takes the place of a stack of transformer blocks. Use :func:`descend` for the
    energies and states of the steps.

    Args:
        dim: Token dimension D.
        num_heads: Number of heads H.
        head_dim: Dimension Y of a head's queries and keys.
        num_memories: Number of memories M (paper: K).
        steps: Number of steps T.
        step_size: Step size alpha = dt / tau.
        noise_std: Standard deviation sigma of the noise added in training (eq. 27). Evaluation adds none.
        checkpoint: If True, training keeps only the tokens of each step and computes the rest again in the backward
            pass.
        block: Further arguments of :class:`EnergyTransformerBlock`, for instance ``self_attention`` or ``activation``.

    Raises:
        ValueError: A size is not a positive integer, or ``steps`` is negative.

    Shape:
        - Input: (B, N, D), or (N, D) with a topology of edges.
        - Output: like the input, in its dtype (float32 under autocast).

    Examples:
        >>> model = EnergyTransformer(dim=64, num_heads=4, head_dim=16, num_memories=256, steps=12, step_size=0.1)
        >>> model(torch.randn(2, 10, 64)).shape
        torch.Size([2, 10, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        num_memories: int,
        steps: int,
        step_size: float,
        noise_std: float = 0.0,
        checkpoint: bool = False,
        **block: Any,
    ):
        super().__init__()
        check_sizes(minimum=0, steps=steps)
        self.steps, self.step_size, self.noise_std, self.checkpoint = steps, step_size, noise_std, checkpoint
        self.block = EnergyTransformerBlock(dim, num_heads, head_dim, num_memories, **block)

    def reset_parameters(self) -> None:
        """Initialise all parameters again."""
        self.block.reset_parameters()

    def forward(self, x: Tensor, topology: Topology | None = None) -> Tensor:
        """Tokens after T steps.

        Args:
            x: Initial tokens, (B, N, D), or (N, D) with a topology of edges.
            topology: Which tokens attend to which. If None, all pairs.

        Returns:
            Final tokens, shaped like ``x``. They are not layer-normalised: ``model.block.norm`` does that.
        """
        noise_std = self.noise_std if self.training else 0.0
        checkpoint = self.checkpoint and self.training
        return descend(
            self.block, x, self.steps, self.step_size, topology, noise_std=noise_std, checkpoint=checkpoint
        ).x

    def extra_repr(self) -> str:
        return f"steps={self.steps}, step_size={self.step_size}"
