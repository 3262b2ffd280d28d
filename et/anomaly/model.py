"""The Energy Transformer for node anomaly detection (paper section 4, appendices C.1 and E)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from et.anomaly.dynamics import PaperDynamics, ReleasedDynamics, reached_nodes
from et.anomaly.known_labels import MASKED, check_label_hops, label_features
from et.anomaly.scoring import CHUNK, WHOLE, chunks, take_step
from et.core import EdgeTopology
from et.core.arguments import check_sizes


class AnomalyTransformer(nn.Module):
    """Maps node features to the log-odds log(p / (1 - p)) that a node is anomalous. https://arxiv.org/abs/2302.07253

    ``fidelity=paper`` follows eq. 10-22: tokens E y + lambda, T steps of one block with step size 1 along the edges
    (eq. 19), and an MLP with one hidden layer on g_1 || g_T; beta is trained. The text is ambiguous in three places.
    Eq. 20 halves the Hopfield energy but eq. 17 does not halve its gradient; the update is that of eq. 17. Appendix E
    aggregates "the final representations" of the relations; g_T is aggregated, and g_1, which all relations share, is
    concatenated once. Eq. 18 and 20 have one beta; here each head has its own.

    ``fidelity=released`` is the authors' code: T - 1 steps of one :class:`ReleasedBlock` and a last step of another
    with its own weights; no position embedding; one linear layer with two outputs on [x_1 || x_T] without a layer norm,
    whose difference is the log-odds. If trained on subgraphs, the layer's input is x_T. Over several relations it is
    the element-wise maximum of the x_T and x_1. (The released code has concatenation in a comment; here it is [x_1 ||
    x_T of each relation].) The relations share the node data: a node without an edge in a relation takes, in every
    step, the attention update that the last relation with an edge at that node computed in its last step. Without such
    a relation, x_T is 0. The order of the relations therefore matters. Unused parameters of the released code are not
    allocated.

    Args:
        in_features: Number of node features F.
        dim: Token dimension D.
        num_heads: Number of heads H.
        head_dim: Head dimension Y.
        num_memories: Number of memories M (the paper's K). If None, ``memories_per_dim`` times Y, as table 6 searches
            it.
        memories_per_dim: M / Y if ``num_memories`` is None.
        steps: Number of steps T.
        step_size: Step size alpha of the descent under ``paper``.
        fidelity: ``paper`` or ``released``.
        num_relations: Number of relations R. One ET with shared weights runs over each (appendix E).
        combine: ``max`` or ``concat``: how the results of several relations are combined (table 12).
        num_nodes: Number of nodes N, for the position embedding.
        position_embedding: If True, learn a vector lambda for every node (eq. 10). If None, as ``fidelity`` has it
            (paper: yes).
        sample_ratio: Share of the nodes in the training subgraphs, if any. Used under ``released`` only.
        mlp_dim: Width of the head's hidden layer under ``paper``. If None, D; 0 means no hidden layer.
        dropout: Dropout probability. ``released``: on the Hopfield network's hidden layer (0.3 there). ``paper``: on
            the input of the head; the paper has none.
        use_attention, use_hopfield: If False, leave the module out (table 13).
        known_labels: Add an embedding of the node's label to its token: benign, anomalous or masked. Not in the paper.
        label_counts: Append the log counts of the neighbours with a visible label, by class and relation, to the
            features. Not in the paper.
        label_hops: With ``label_counts``: 1, or 2 to append :func:`et.anomaly.known_labels.label_rates` as well.
        num_blocks: Number of blocks, each with its own weights and its own T steps, under ``paper``. The paper has one.
        energy_features: The head also reads each node's attention and Hopfield energies at g_1 and g_T, under
            ``paper``. Not in the paper.
    """

    # Arguments without effect under ``fidelity=released``
    unused_by_released = ("step_size", "mlp_dim", "num_blocks", "energy_features")

    def __init__(
        self,
        in_features: int,
        dim: int,
        num_heads: int,
        head_dim: int,
        num_memories: int | None,
        steps: int,
        step_size: float = 1.0,
        fidelity: Literal["paper", "released"] = "paper",
        num_relations: int = 1,
        combine: Literal["max", "concat"] = "max",
        num_nodes: int | None = None,
        position_embedding: bool | None = None,
        sample_ratio: float | None = None,
        mlp_dim: int | None = None,
        dropout: float | None = None,
        memories_per_dim: int = 2,
        use_attention: bool = True,
        use_hopfield: bool = True,
        known_labels: bool = False,
        label_counts: bool = False,
        label_hops: Literal[1, 2] = 1,
        num_blocks: int = 1,
        energy_features: bool = False,
    ):
        super().__init__()
        if fidelity not in ("paper", "released"):
            raise ValueError(f"fidelity must be 'paper' or 'released', not {fidelity!r}")
        if combine not in ("max", "concat"):
            raise ValueError(f"combine must be 'max' or 'concat', not {combine!r}")
        check_sizes(in_features=in_features, dim=dim, num_heads=num_heads, head_dim=head_dim)
        check_sizes(num_relations=num_relations, memories_per_dim=memories_per_dim)
        check_sizes(minimum=0, steps=steps, mlp_dim=0 if mlp_dim is None else mlp_dim)
        self.released, self.num_relations, self.combine = fidelity == "released", num_relations, combine
        num_memories = memories_per_dim * head_dim if num_memories is None else num_memories
        dropout = (0.3 if self.released else 0.0) if dropout is None else dropout
        sizes = (dim, num_heads, head_dim, num_memories)
        parts = {"use_attention": use_attention, "use_hopfield": use_hopfield}
        self.label_counts, self.takes_known_labels = label_counts, known_labels or label_counts
        self.label_hops = check_label_hops(label_hops, label_counts)
        self.embed = nn.Linear(in_features + (2 * num_relations * label_hops if label_counts else 0), dim)
        self.label = nn.Parameter(torch.empty(3, dim).normal_(std=0.02)) if known_labels else None
        self.position = None
        if position_embedding or (position_embedding is None and not self.released):
            if num_nodes is None:
                raise ValueError("a position embedding needs num_nodes")
            check_sizes(num_nodes=num_nodes)
            self.position = nn.Parameter(torch.empty(num_nodes, dim))
            nn.init.normal_(self.position, std=0.02)
        if self.released:
            self.dynamics = ReleasedDynamics(*sizes, steps=steps, dropout=dropout, **parts)
        else:
            self.dynamics = PaperDynamics(*sizes, steps=steps, step_size=step_size, num_blocks=num_blocks, **parts)
        several = num_relations > 1
        self.with_first = several or not self.released or sample_ratio is None
        width = dim * ((num_relations if several and combine == "concat" else 1) + self.with_first)
        self.energy_norm = None
        if self.released:
            width = dim if several and combine == "max" else width
            self.head = nn.Linear(width, 2)
        else:
            if energy_features:
                num_energies = 2 * (use_attention + use_hopfield) * num_relations
                self.energy_norm = nn.BatchNorm1d(num_energies)
                width += num_energies
            self.head = mlp_head(width, dim if mlp_dim is None else mlp_dim, dropout)

    def reset_parameters(self) -> None:
        """Initialise all parameters again, with the same random draws as a new model."""
        self.embed.reset_parameters()
        for embedding in (self.label, self.position):
            if embedding is not None:
                nn.init.normal_(embedding, std=0.02)
        self.dynamics.reset_parameters()
        for layer in (self.energy_norm, *self.head.modules()):
            if isinstance(layer, (nn.Linear, nn.BatchNorm1d)):
                layer.reset_parameters()

    def tokens(self, features: Tensor, nodes: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """Initial tokens x_1 (eq. 10).

        Args:
            features: Node features, with the label counts if the model takes them, (n, F).
            nodes: Node ids in the whole graph for the position embedding, (n,). If None, 0 .. N-1.
            known: Open labels for the label embedding, (n,). If None, all labels are masked.

        Returns:
            Tokens, (n, D).
        """
        x = self.embed(features)
        if self.label is not None:
            x = x + (self.label[MASKED] if known is None else F.embedding(known, self.label))
        if self.position is None:
            return x
        return x + (self.position if nodes is None else self.position[nodes])

    def inputs(self, features: Tensor, topologies: Sequence[EdgeTopology], known: Tensor | None) -> Tensor:
        """The features with what is appended to them, (n, F) -> (n, F), (n, F + 2 R) or (n, F + 4 R)."""
        if not self.label_counts:
            return features
        if known is None:
            known = torch.full((len(features),), MASKED, device=features.device)
        return torch.cat([features, label_features(known, topologies, self.label_hops).to(features)], dim=1)

    def forward(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Log-odds of an anomaly.

        Args:
            features: Node features, (n, F).
            topologies: One topology, or one per relation.
            nodes: Node ids in the whole graph, (n,). If None, 0 .. N-1.
            known: Open labels 0, 1 or 2 (masked) for ``known_labels`` and ``label_counts``, (n,). If None, all are
                masked.

        Returns:
            Log-odds, (n,).
        """
        x = self.tokens(self.inputs(features, topologies, known), nodes, known)
        first, finals = self.dynamics.first(x), self.dynamics(x, topologies)
        return self.classify(first, finals, self.energies(first, finals, topologies))

    def energies(self, first: Tensor, finals: Sequence[Tensor], topologies: Sequence[EdgeTopology]) -> Tensor | None:
        """Input of the head from the energies of :meth:`PaperDynamics.energies`, (n, 2 R or 4 R). None if it has none.

        Args:
            first: Tokens before the first step, (n, D).
            finals: Tokens after the last step in each relation, (n, D) each.
        """
        if self.energy_norm is None:
            return None
        found = [
            self.dynamics.energies(first, last, topology) for last, topology in zip(finals, topologies, strict=True)
        ]
        energies = torch.cat(found, dim=-1).to(first)
        return self.energy_norm(energies.sign() * energies.abs().log1p())  # energies grow with D, M and the degree

    @torch.no_grad()
    def score(
        self,
        features: Tensor,
        topologies: Sequence[EdgeTopology],
        nodes: Tensor | None = None,
        chunk_size: int | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """:meth:`forward` without gradients, for graphs of any size.

        Args:
            features, topologies, nodes: See :meth:`forward`.
            chunk_size: Number of nodes processed at a time. If None, a graph of up to ``WHOLE`` nodes is scored in one
                piece, and a larger one in chunks of ``CHUNK`` nodes.
        """
        if chunk_size is None:
            chunk_size = len(features) if len(features) <= WHOLE else CHUNK
        if len(features) <= chunk_size:
            return self(features, topologies, nodes, known)
        known = torch.full((len(features),), MASKED, device=features.device) if known is None else known
        features = self.inputs(features, topologies, known)
        nodes = torch.arange(len(features), device=features.device) if nodes is None else nodes
        parts = list(chunks(len(features), chunk_size))
        finals, carried = [], None
        for topology in topologies:
            x = torch.cat([self.tokens(features[part], nodes[part], known[part]) for part in parts])
            if self.released and len(topologies) > 1 and carried is None:
                carried = torch.zeros_like(x)
            for step in self.dynamics.as_steps():
                x = take_step(step, x, topology, chunk_size, carried=carried)
            finals.append(x)
        log_odds, reached, energies = features.new_empty(len(features)), reached_nodes(topologies), None
        if self.energy_norm is not None:  # in one piece
            first = torch.cat([self.dynamics.first(self.tokens(features[p], nodes[p], known[p])) for p in parts])
            last = [self.dynamics.last(x, some) for x, some in zip(finals, reached, strict=True)]
            energies = self.energies(first, last, topologies)
        for part in parts:
            first = self.dynamics.first(self.tokens(features[part], nodes[part], known[part]))
            last = [self.dynamics.last(x[part], some[part]) for x, some in zip(finals, reached, strict=True)]
            log_odds[part] = self.classify(first, last, None if energies is None else energies[part])
        return log_odds

    def classify(self, first: Tensor, finals: list[Tensor], energies: Tensor | None = None) -> Tensor:
        """Log-odds from the tokens before the first step and, for each relation, after the last: (n, D) each.

        Args:
            energies: See :meth:`energies`.
        """
        merged = self.merge(first, finals)
        logits = self.head(merged if energies is None else torch.cat([merged, energies], dim=-1))
        return logits[:, 1] - logits[:, 0] if self.released else logits[:, 0]

    def merge(self, first: Tensor, finals: list[Tensor]) -> Tensor:
        """Input of the head, (n, a multiple of D) (eq. 11 and 21, appendix E)."""
        if len(finals) != self.num_relations:
            raise ValueError(f"built for {self.num_relations} relations, called with {len(finals)}")
        if len(finals) > 1 and self.combine == "max":
            if self.released:
                return torch.stack([*finals, first]).amax(0)
            finals = [torch.stack(finals).amax(0)]
        return torch.cat([first, *finals] if self.with_first else finals, dim=-1)


def mlp_head(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """MLP of section 4 without its sigmoid: (n, width) -> (n, 1)."""
    if hidden == 0:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, 1))
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))
