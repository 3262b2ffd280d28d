"""The Energy Transformer for graphs (paper section 5 and appendix D, eq. 23-27)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from et.core import EnergyTransformerBlock, Topology, descend
from et.core.arguments import check_sizes
from et.core.precision import no_autocast
from et.graphs.batch import GraphBatch
from et.graphs.layout import Layout, make_layout
from et.graphs.positional import flip_signs


class GraphEnergyTransformer(nn.Module):
    """S blocks of T steps each over [CLS; nodes], weighted attention along the edges, readout from CLS or the nodes.

    A graph's tokens are X = [CLS; W y] + W_pe lambda, with node features y and Laplacian eigenvectors lambda (eq. 23).
    From them ahat = Conv3x3(X X^T) * A' is made once (eq. 24); it weights the attention (eq. 25) of every block. Each
    block descends its energy (eq. 27) from where the one before ended, with a layer norm of its own (eq. 26).

    The convolution runs over the *positions* of the nodes in the file. With it the model's output depends on the order
    in which a graph's nodes are numbered, which the paper does not say: ``python -m et.graphs.node_order`` measures how
    much. ``conv="none"`` leaves it out (ahat = A'), and then the output does not depend on the order,
    given the eigenvectors.

    Args:
        in_features: F.
        edge_features: P', or 0 where edges have no features (A' is then a projection of the adjacency itself).
        num_outputs: classes, or 1 for a regression.
        readout: ``cls``, one output a graph, or ``nodes``, one a node.
        dim, num_heads, head_dim, num_memories: D, H, Y, M of a block.
        num_blocks, steps: S and T.
        activation, beta, train_beta: of a block; see :class:`et.core.EnergyTransformerBlock`.
        step_size: alpha of eq. 27.
        noise_std: sigma of eq. 27, in training, and with ``noise_in_evaluation`` always.
        num_eigenvectors: k of eq. 23.
        flips: signs of the eigenvectors in training: ``vectors``, ``entries`` (see
            :func:`et.graphs.positional.flip_signs`), or None to leave them as they are.
        conv: ``3x3`` (eq. 24) or ``none``.
        head_mix: mix the scores over the heads by a matrix (H, H) in each block (released code).
        adjacency_bias: a bias in the projection A'. In the padded layout it turns non-edges into edges.
        layout: ``sparse`` or ``padded`` (see et/graphs/layout.py).
        sink_padding: If True, padded tokens attend to the real ones and CLS attends to them (appendix D.3 and released
            code). Needs ``layout="padded"``.
        noise_in_evaluation: see ``noise_std``.
        edge_reconstruction: learn to rebuild the edge features from ahat (MNIST and CIFAR10, appendix D.3).
        edge_decoder_init_std: of the layer that does so. It starts at 0, rebuilding nothing: ahat is of the size of D,
            and the error of a random layer is some hundred times the classification's, so that the first hundreds of
            steps would learn from it alone. None: 1/sqrt(H), as the released code has it.
        attention_init_std: of queries, keys and head mix. The images' 0.02 (algorithm 1) saturates the softmax here,
            where inner products of whole tokens multiply the scores; the released code has 0.002.
        memory_init_std: of the Hopfield network's memories (algorithm 1: 0.02; released code: 1/sqrt(D)).
        flax_layout: centralise gradients as the released code does, whose layers hold their weights the other way
            round (see :meth:`centralized_axes`).
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
        conv: Literal["3x3", "none"] = "3x3",
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
        if conv not in ("3x3", "none"):
            raise ValueError(f"conv must be '3x3' or 'none', not {conv!r}")
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
        self.kernel = nn.Parameter(torch.empty(num_heads, 3, 3)) if conv == "3x3" else None
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
        """Initialise all parameters again, with the random numbers that a new model would draw."""
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
        cls, fidelity: Literal["paper", "released"], released: Mapping[str, Any] | None = None, **arguments: Any
    ) -> GraphEnergyTransformer:
        """The model of the paper's equations, or with ``released`` replacing arguments, that of the authors' code.

        Raises:
            ValueError: ``fidelity`` is neither.
        """
        if fidelity not in ("paper", "released"):
            raise ValueError(f"fidelity must be 'paper' or 'released', not {fidelity!r}")
        return cls(**(arguments | dict(released or {}) if fidelity == "released" else arguments))

    def centralized_axes(self) -> dict[str, tuple[int, ...]]:
        """Axes over which gradient centralisation takes the mean, for parameters that are not by the usual rule.

        The rule keeps a mean for each index of the first axis. In the released code that is the first axis of Flax's
        layers: inputs before outputs, rows of the convolution's kernel before its heads, and a CLS token of (1, D).
        """
        if not self.flax_layout:
            return {}
        layers = {f"{name}.weight": (0,) for name, part in self.named_modules() if isinstance(part, nn.Linear)}
        memories = {f"blocks.{index}.hopfield.memories": (0,) for index in range(len(self.blocks))}
        return layers | memories | {"kernel": (0, 2), "cls": (0,)}

    def forward(self, batch: GraphBatch) -> Tensor:
        """Outputs (G, num_outputs), or (N, num_outputs) with readout from the nodes."""
        return self.head(self.read_out(batch)[0])

    def forward_with_edges(self, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """Outputs, and for each graph the error of its edge features rebuilt from ahat, (G,) (appendix D.3)."""
        tokens, layout, ahat = self.read_out(batch)
        return self.head(tokens), layout.edge_errors(ahat, self.edge_decoder)

    def initial(self, batch: GraphBatch) -> tuple[Tensor, Layout, Tensor]:
        """Initial tokens in the batch's layout, that layout, and ahat (eq. 23, 24); in float32 or better."""
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
            kernel = None if self.kernel is None else self.kernel.permute(1, 2, 0)
            return x, layout, layout.adjacency(x, self.adjacency, kernel)

    def read_out(self, batch: GraphBatch) -> tuple[Tensor, Layout, Tensor]:
        """What the head reads after all blocks (eq. 27), (G, D) or (N, D), the layout it was computed in, and ahat."""
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
        """Energy of each graph before the first and after every step of each block: (S, T + 1, G) (eq. 6, 25).

        Blocks have energies of their own, so the last number of one and the first of the next differ. Only real tokens
        count, not their padding.
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
