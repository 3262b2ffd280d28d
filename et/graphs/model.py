"""The Energy Transformer for graphs (paper section 5 and appendix D, eq. 23-27)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from et.core import EnergyTransformerBlock, Topology, descend
from et.core.arguments import check_sizes
from et.core.precision import no_autocast
from et.graphs.batch import GraphBatch
from et.graphs.layout import Layout, make_layout
from et.graphs.positional import flip_signs
from et.utils.errors import ArgumentsOf


class GraphEnergyTransformer(nn.Module):
    """S blocks of T steps each over [CLS; nodes]: weighted attention along the edges, readout from CLS or from the
    nodes.

    The tokens of a graph are X = [CLS; W y] + W_pe lambda, with node features y and Laplacian eigenvectors lambda (eq.
    23). ahat = Conv3x3(X X^T) * A' is computed once (eq. 24) and weights the attention (eq. 25) of every block. Each
    block has its own layer norm (eq. 26) and descends its energy (eq. 27) from the final tokens of the previous block.

    The convolution runs over the node indices of the file. With it the output depends on the order of a graph's nodes,
    which the paper does not state: ``python -m et.graphs.node_order`` measures the effect. With ``conv="none"`` (ahat =
    A') or ``conv="random_walk"`` (:meth:`et.graphs.layout.Layout.walk_convolution`) the output does not depend on the
    order, given the eigenvectors. Paper: https://arxiv.org/abs/2302.07253

    Args:
        in_features: Number of node features F.
        edge_features: Number of edge features P'; 0 if edges have none (A' then projects the adjacency itself).
        num_outputs: Number of classes, or 1 for a regression.
        readout: ``cls`` for one output per graph, ``nodes`` for one per node.
        dim: Token dimension D.
        num_heads, head_dim: Number of heads H, and their dimension Y.
        num_memories: Number of memories M of the Hopfield network (paper: K).
        num_blocks: Number of blocks S, each with its own weights.
        steps: Number of steps T of each block.
        activation, beta, train_beta: See :class:`et.core.EnergyTransformerBlock`.
        step_size: Step size (alpha of eq. 27).
        noise_std: Standard deviation of the noise of a step (sigma of eq. 27), used in training, and in evaluation if
            ``noise_in_evaluation``.
        num_eigenvectors: Number of eigenvectors of the Laplacian in the positional encoding (k of eq. 23).
        flips: Random signs of the eigenvectors in training: ``vectors`` or ``entries`` (see
            :func:`et.graphs.positional.flip_signs`). If None, signs are kept.
        conv: First factor of ahat: ``3x3`` (eq. 24), ``random_walk`` or ``none``. Padded sinks have no random walk.
        head_mix: If True, mix the scores over the heads by a matrix (H, H) in each block (released code).
        adjacency_bias: If True, the projection A' has a bias. In the padded layout it turns non-edges into edges.
        layout: ``sparse`` or ``padded`` (see :mod:`et.graphs.layout`).
        sink_padding: If True, padded tokens attend to the real ones and CLS attends to them (appendix D.3 and released
            code). Needs ``layout="padded"``.
        noise_in_evaluation: If True, ``noise_std`` also applies in evaluation.
        edge_reconstruction: If True, learn to reconstruct the edge features from ahat (MNIST and CIFAR10, appendix
            D.3).
        edge_decoder_init_std: Initial standard deviation of the reconstruction layer. The default 0 predicts zeros:
            ahat grows with D, and the error of a random layer is some hundred times the classification loss. If None,
            1/sqrt(H), as in the released code.
        attention_init_std: Initial standard deviation of queries, keys and head mix. The image model's 0.02 (algorithm
            1) saturates the softmax here, because inner products of whole tokens multiply the scores; the released code
            has 0.002.
        memory_init_std: Initial standard deviation of the memories (algorithm 1: 0.02; released code: 1/sqrt(D)).
        flax_layout: If True, centralise gradients over the axes of the released Flax weights, whose layout is
            transposed (see :meth:`centralized_axes`).
    """

    def __init__(
        self,
        in_features: int,
        edge_features: int,
        num_outputs: int,
        readout: Literal["cls", "nodes"] = "cls",
        dim: int = 128,
        num_heads: int = 12,
        head_dim: int = 64,
        num_memories: int = 512,
        num_blocks: int = 4,
        steps: int = 1,
        step_size: float = 0.01,
        noise_std: float = 0.02,
        num_eigenvectors: int = 15,
        conv: Literal["3x3", "random_walk", "none"] = "3x3",
        head_mix: bool = False,
        adjacency_bias: bool = False,
        layout: Literal["sparse", "padded"] = "sparse",
        sink_padding: bool = False,
        noise_in_evaluation: bool = False,
        edge_reconstruction: bool = False,
        edge_decoder_init_std: float | None = 0.0,
        attention_init_std: float = 0.002,
        memory_init_std: float = 0.02,
        activation: Literal["relu", "softmax", "power"] = "relu",
        beta: float | None = None,
        train_beta: bool = True,
        flips: Literal["vectors", "entries"] | None = "vectors",
        flax_layout: bool = False,
    ):
        super().__init__()
        if readout not in ("cls", "nodes"):
            raise ValueError(f"readout must be 'cls' or 'nodes', not {readout!r}")
        if conv not in ("3x3", "random_walk", "none"):
            raise ValueError(f"conv must be '3x3', 'random_walk' or 'none', not {conv!r}")
        if conv == "random_walk" and sink_padding:
            raise ValueError("conv='random_walk' needs sink_padding=False: padded tokens have no neighbours to walk to")
        if flips not in ("vectors", "entries", None):
            raise ValueError(f"flips must be 'vectors', 'entries' or null, not {flips!r}")
        if edge_reconstruction and not edge_features:
            raise ValueError("edge_reconstruction needs edge features: edge_features is 0")
        check_sizes(in_features=in_features, num_outputs=num_outputs, dim=dim, num_heads=num_heads)
        check_sizes(num_blocks=num_blocks, num_eigenvectors=num_eigenvectors)
        check_sizes(minimum=0, edge_features=edge_features, steps=steps)
        self.readout, self.steps, self.step_size = readout, steps, step_size
        self.noise_std, self.noise_in_evaluation = noise_std, noise_in_evaluation
        self.layout, self.sink_padding, self.flips, self.flax_layout = layout, sink_padding, flips, flax_layout
        self.attention_init_std, self.edge_decoder_init_std = attention_init_std, edge_decoder_init_std
        self.encoder = ScaledLinear(in_features, dim)
        self.position = ScaledLinear(num_eigenvectors, dim)
        self.cls = nn.Parameter(torch.empty(dim))
        self._reset_cls()
        self.adjacency = ScaledLinear(edge_features or 1, num_heads, bias=adjacency_bias)
        self.conv = conv
        self.kernel = None if conv == "none" else nn.Parameter(torch.empty(num_heads, 3, 3))
        self._reset_kernel()
        self.blocks = nn.ModuleList(
            EnergyTransformerBlock(
                dim,
                num_heads,
                head_dim,
                num_memories,
                activation=activation,
                beta=beta,
                train_beta=train_beta,
                attention_init_std=attention_init_std,
                hopfield_init_std=memory_init_std,
            )
            for _ in range(num_blocks)
        )
        mixes = [torch.empty(num_heads, num_heads) for _ in range(num_blocks if head_mix else 0)]
        self.head_mix = nn.ParameterList(mixes) if head_mix else None
        self._reset_head_mix()
        self.edge_decoder = ScaledLinear(num_heads, edge_features, bias=False) if edge_reconstruction else None
        self._reset_edge_decoder()
        self.head = ScaledLinear(dim, num_outputs)

    def reset_parameters(self) -> None:
        """Initialise all parameters again, with the same random draws as a new model."""
        self.encoder.reset_parameters()
        self.position.reset_parameters()
        self._reset_cls()
        self.adjacency.reset_parameters()
        self._reset_kernel()
        for block in self.blocks:
            block.reset_parameters()
        self._reset_head_mix()
        if self.edge_decoder is not None:
            self.edge_decoder.reset_parameters()
            self._reset_edge_decoder()
        self.head.reset_parameters()

    def _reset_cls(self) -> None:
        nn.init.normal_(self.cls, std=0.02)

    @torch.no_grad()
    def _reset_kernel(self) -> None:
        if self.kernel is not None:
            self.kernel.normal_().div_(3)

    def _reset_head_mix(self) -> None:
        for mix in self.head_mix or ():
            nn.init.normal_(mix, std=self.attention_init_std)

    def _reset_edge_decoder(self) -> None:
        if self.edge_decoder is not None and self.edge_decoder_init_std is not None:
            nn.init.normal_(self.edge_decoder.weight, std=self.edge_decoder_init_std)

    @classmethod
    def of_fidelity(
        cls,
        fidelity: Literal["paper", "released"],
        released: Annotated[Mapping[str, Any] | None, ArgumentsOf("et.graphs.model.GraphEnergyTransformer")] = None,
        **arguments: Any,
    ) -> GraphEnergyTransformer:
        """Build the model of the paper's equations, or that of the released code.

        Args:
            fidelity: ``paper`` or ``released``.
            released: Arguments that replace others under ``fidelity="released"``. If None, none are replaced.
            **arguments: Arguments of the constructor.

        Raises:
            ValueError: ``fidelity`` is unknown.
        """
        if fidelity not in ("paper", "released"):
            raise ValueError(f"fidelity must be 'paper' or 'released', not {fidelity!r}")
        return cls(**(arguments | dict(released or {}) if fidelity == "released" else arguments))

    def centralized_axes(self) -> dict[str, tuple[int, ...]]:
        """Axes over which gradient centralisation averages, for parameters that deviate from the default rule.

        By default there is one mean for each index of the first axis. In the released code this is the first axis of
        the Flax weights: inputs before outputs, rows of the convolution kernel before its heads, and a CLS token of
        shape (1, D).
        """
        if not self.flax_layout:
            return {}
        layers = {f"{name}.weight": (0,) for name, part in self.named_modules() if isinstance(part, nn.Linear)}
        memories = {f"blocks.{index}.hopfield.memories": (0,) for index in range(len(self.blocks))}
        return layers | memories | {"kernel": (0, 2), "cls": (0,)}

    def forward(self, batch: GraphBatch) -> Tensor:
        """Outputs (G, num_outputs), or (N, num_outputs) with ``readout="nodes"``."""
        return self.head(self.read_out(batch)[0])

    def forward_with_edges(self, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """Outputs, and the reconstruction error of each graph's edge features, (G,) (appendix D.3)."""
        tokens, layout, ahat = self.read_out(batch)
        return self.head(tokens), layout.edge_errors(ahat, self.edge_decoder)

    def initial(self, batch: GraphBatch) -> tuple[Tensor, Layout, Tensor]:
        """Initial tokens in the layout of the batch, the layout, and ahat (eq. 23, 24), in at least float32."""
        with no_autocast(batch.x):
            pe = batch.pe
            if self.training and self.flips is not None:
                pe = flip_signs(pe, batch.sizes + 1, self.flips)
            dtype = self.cls.dtype
            tokens = self.position(pe.to(dtype))
            tokens = tokens.index_add(0, batch.node_tokens, self.encoder(batch.x.to(dtype)))
            tokens = tokens.index_add(0, batch.cls_tokens, self.cls.expand(len(batch), -1))
            layout = make_layout(batch, self.layout, self.sink_padding)
            # Padding is encoded like a node without features. Its eigenvectors are zero here; the released code takes
            # them from the padded adjacency, batch by batch (docs/explanation/paper.md).
            x = layout.place(tokens, self.encoder.bias + self.position.bias)
            ahat = layout.adjacency(x, self.adjacency)
            if self.kernel is not None:
                convolve = layout.convolution if self.conv == "3x3" else layout.walk_convolution
                ahat = convolve(x, self.kernel.permute(1, 2, 0)) * ahat
            return x, layout, ahat

    def read_out(self, batch: GraphBatch) -> tuple[Tensor, Layout, Tensor]:
        """Input of the head after all blocks (eq. 27), (G, D) or (N, D), the layout, and ahat."""
        x, layout, ahat = self.initial(batch)
        noise = self.noise_std if self.training or self.noise_in_evaluation else 0.0
        for index, block in enumerate(self.blocks):
            # The last step moves no token but those that are read: with four blocks of one step, 16 % fewer products.
            query_index = layout.cls if self.readout == "cls" and index == len(self.blocks) - 1 else None
            topology = self._topology(layout, ahat, index)
            x = descend(block, x, self.steps, self.step_size, topology, noise, query_index=query_index).x
        tokens = x.flatten(0, -2) if self.readout == "cls" else layout.tokens(x)[batch.node_tokens]
        return tokens, layout, ahat

    @torch.no_grad()
    def energies(self, batch: GraphBatch) -> Tensor:
        """Energy of each graph before the first and after every step of each block, (S, T + 1, G) (eq. 6, 25).

        Each block has its own energy function, so the last value of a block differs from the first of the next. Padding
        is ignored.
        """
        x, layout, ahat = self.initial(batch)
        noise = self.noise_std if self.training or self.noise_in_evaluation else 0.0
        graph_of_token = torch.repeat_interleave(batch.sizes + 1, output_size=batch.num_nodes + len(batch))
        found = []
        for index, block in enumerate(self.blocks):
            topology = self._topology(layout, ahat, index)
            descent = descend(block, x, self.steps, self.step_size, topology, noise, record=True)
            for state in descent.states:
                g = block.norm(state)
                of_token = block.attention.token_energy(g, topology) + block.hopfield.token_energy(g)
                of_token = layout.tokens(of_token[..., None])[:, 0]
                found.append(of_token.new_zeros(len(batch)).index_add(0, graph_of_token, of_token))
            x = descent.x
        return torch.stack(found).view(len(self.blocks), self.steps + 1, len(batch))

    def _topology(self, layout: Layout, ahat: Tensor, block: int) -> Topology:
        return layout.attention(ahat, None if self.head_mix is None else self.head_mix[block])


class ScaledLinear(nn.Linear):
    """Affine layer whose outputs initially have the variance of its inputs, with biases of 0."""

    def reset_parameters(self) -> None:
        super().reset_parameters()  # draws as many random numbers as a plain layer
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.in_features))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
