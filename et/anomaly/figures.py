"""Figures of an Energy Transformer on a graph of nodes: attention on neighbours, and energies of the nodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from et.anomaly.batch import NodeBatch
from et.anomaly.data import NodeDataModule
from et.anomaly.dynamics import PaperDynamics
from et.anomaly.graph import UNLABELLED
from et.anomaly.known_labels import visible_labels
from et.anomaly.model import AnomalyTransformer
from et.core import EdgeTopology, EnergyTransformerBlock
from et.core.sparse import edge_scores, segment_softmax
from et.utils.errors import UserError

KINDS = {0: "benign", 1: "anomalous"}
COLOURS = {0: "C0", 1: "C3"}


def neighbour_attention(block: EnergyTransformerBlock, g: Tensor, topology: EdgeTopology) -> Tensor:
    """Attention of each query on its neighbours, as in the update (eq. 17): (E, H), edges in sorted order."""
    attention = block.attention
    q, k = attention.split_heads(F.linear(g, attention.stacked_weights(), attention.stacked_bias()))
    return segment_softmax(edge_scores(q, k, topology.edges) * attention.beta, topology.edges)


def attention_share(weights: Tensor, chosen: Tensor, topology: EdgeTopology) -> Tensor:
    """Share of each node's attention on neighbours in ``chosen``: weights (E,), chosen (N,) bool -> (N,)."""
    total = weights.new_zeros(topology.num_nodes)
    return total.index_add_(0, topology.edges.query.long(), weights * chosen[topology.edges.key])


@dataclass(frozen=True)
class FinalState:
    """Final state of a descent along the edges of one relation. N nodes, E edges.

    Attributes:
        attention: Attention of each query on its neighbours, mean over the heads, (E,). None without the attention
            module.
        uniform: Uniform attention, 1 / number of neighbours, (E,).
        energies: Share of each node in the energy, (N,), by module.
    """

    attention: Tensor | None
    uniform: Tensor
    energies: dict[str, Tensor]


@torch.no_grad()
def final_state(network: AnomalyTransformer, batch: NodeBatch, relation: int = 0) -> FinalState:
    """Descend on the whole graph, with all training labels visible if the network reads them, and record the final
    state.
    """
    dynamics, topology = network.dynamics, batch.topologies[relation]
    known = visible_labels(batch.labels, batch.train) if network.takes_known_labels else None
    tokens = network.tokens(network.inputs(batch.features, batch.topologies, known), batch.nodes, known)
    block = dynamics.blocks[-1]
    g = block.norm(dynamics.descend(tokens, topology))
    energies = {}
    if block.attention is not None:
        energies["attention"] = block.attention.token_energy(g, topology)
    if block.hopfield is not None:
        energies["Hopfield"] = block.hopfield.token_energy(g)
    energies["total"] = torch.stack(list(energies.values())).sum(0)
    degree = topology.edges.degree
    attention = None if block.attention is None else neighbour_attention(block, g, topology).mean(1)
    return FinalState(attention, 1 / degree[topology.edges.query].float(), energies)


def figure_summary(
    state: FinalState, labels: Tensor, topology: EdgeTopology, of_energies: Tensor | None = None
) -> dict[str, Any]:
    """Summary of the figures.

    Args:
        state: The final state.
        labels: Labels, (N,).
        topology: Edges of the relation.
        of_energies: Labels of the nodes whose energies are measured, the others -1, (N,). If None, ``labels``.

    Returns:
        Mean share of attention on anomalous neighbours by kind of node, beside the share of such neighbours; for each
        energy the means and the AUC with which a *low* energy detects anomalous nodes.
    """
    from torchmetrics.functional.classification import binary_auroc

    connected, own = topology.edges.degree > 0, labels if of_energies is None else of_energies
    known = own >= 0
    found: dict[str, Any] = {"attention_on_anomalous": {}, "energy": {}}
    anomalous = labels == 1
    for label, kind in KINDS.items():
        nodes = connected & (labels == label)
        if state.attention is not None and nodes.any():
            found["attention_on_anomalous"][kind] = {
                "attention": float(attention_share(state.attention, anomalous, topology)[nodes].mean()),
                "neighbours": float(attention_share(state.uniform, anomalous, topology)[nodes].mean()),
            }
    for name, energy in state.energies.items():
        means = {kind: float(energy[own == label].mean()) for label, kind in KINDS.items()}
        # AUROC rounds predictions to probabilities unless they are; ranks are all it needs.
        ranks = (-energy[known]).argsort().argsort() / max(1, int(known.sum()))
        found["energy"][name] = {**means, "auc_of_low_energy": float(binary_auroc(ranks.float(), own[known]))}
    return found


def draw_neighbours(
    state: FinalState, labels: Tensor, topology: EdgeTopology, nodes: Tensor, path: Path, each: int = 3
) -> None:
    """Draw the attention of some anomalous and benign nodes: one bar per neighbour, coloured by the neighbour's label.

    Args:
        state: The final state.
        labels: Labels, (N,).
        topology: Edges of the relation.
        nodes: Node ids in the graph's file, (N,).
        path: The picture.
        each: Number of nodes of each kind.
    """
    from matplotlib.figure import Figure

    degree = topology.edges.degree
    figure = Figure(figsize=(3.4 * each, 5), layout="constrained")
    for row, label in zip(figure.subplots(2, each, squeeze=False), (1, 0), strict=True):
        candidates = nodes.argsort()
        candidates = candidates[(labels[candidates] == label) & (degree[candidates] >= 3)]
        # The nodes nearest the median degree, so that bars can be told apart.
        order = (degree[candidates] - degree[candidates].median()).abs().argsort(stable=True)
        for axis, node in zip(row, candidates[order][:each].tolist(), strict=False):
            edges = slice(int(topology.edges.row_start[node]), int(topology.edges.row_start[node + 1]))
            weights, keys = state.attention[edges], topology.edges.key[edges].long()
            ranked = weights.argsort(descending=True)[:40]
            colours = [COLOURS.get(int(labels[key]), "grey") for key in keys[ranked]]
            axis.bar(range(len(ranked)), weights[ranked].numpy(), color=colours)
            axis.axhline(1 / len(weights), color="grey", linestyle="--", linewidth=1)
            axis.set(
                title=f"{KINDS[label]} node {int(nodes[node])}, {len(weights)} neighbours",
                xticks=[],
                xlabel="neighbours",
            )
        row[0].set_ylabel("attention, mean of heads")
    figure.suptitle("red: anomalous neighbours, blue: benign ones, broken line: even attention")
    figure.savefig(path, dpi=110)


def draw_energies(state: FinalState, labels: Tensor, numbers: dict[str, Any], path: Path) -> None:
    """Draw histograms of the nodes' shares of the energy after the descent, anomalous against benign."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.8 * len(state.energies), 3.2), layout="constrained")
    for axis, (name, energy) in zip(
        figure.subplots(1, len(state.energies), squeeze=False)[0], state.energies.items(), strict=True
    ):
        bins = np.histogram_bin_edges(energy[labels >= 0].numpy(), bins=40)
        for label, kind in KINDS.items():
            chosen = energy[labels == label].numpy()
            axis.hist(chosen, bins, density=True, alpha=0.6, color=COLOURS[label], label=f"{kind}, n = {len(chosen)}")
        auc = numbers["energy"][name]["auc_of_low_energy"]
        axis.set(title=f"{name}: AUC of low energy {auc:.2f}", xlabel="energy of a node", yticks=[])
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_figures(network: torch.nn.Module, data: NodeDataModule, folder: Path) -> dict[str, Any]:
    """Draw neighbours.png and energies.png of the first relation; returns :func:`figure_summary`.

    Those of a blend are its ET's, and those of an ensemble its first network's.

    Raises:
        UserError: The network has no energy: a baseline, or the released model.
    """
    network = getattr(network, "network", network)
    network = next(iter(getattr(network, "networks", [network])))
    if not isinstance(getattr(network, "dynamics", None), PaperDynamics):
        raise UserError("only an Energy Transformer with fidelity=paper has an energy to draw")
    folder.mkdir(parents=True, exist_ok=True)
    data.setup()
    batch, network = data.whole, network.cpu().eval()
    state, topology = final_state(network, batch), batch.topologies[0]
    labels, others = batch.labels, batch.labels
    if network.takes_known_labels:  # a training node's energy shows its own label
        others = labels.index_fill(0, batch.train, UNLABELLED)
    numbers = figure_summary(state, labels, topology, others)
    if state.attention is not None:
        draw_neighbours(state, labels, topology, batch.nodes, folder / "neighbours.png")
    draw_energies(state, others, numbers, folder / "energies.png")
    return numbers
