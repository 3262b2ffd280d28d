"""Graph for node anomaly detection: its fields, checks, and the neighbourhoods of the model's attention."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from et.core.csr import is_integer
from et.utils.errors import UserError

UNLABELLED = -1


@dataclass(frozen=True)
class NodeGraph:
    """Nodes with features and labels, and edges of one or more relations.

    Attributes:
        name: Name of the data set.
        features: (N, F) float32, or float64 if float32 would lose a column's variation beside its offset.
        labels: (N,) int64: 0 benign, 1 anomalous, -1 unlabelled.
        relations: Edges of each relation, (2, E); row 0 is the source, row 1 the target. An undirected edge is listed
            in both directions.
        variant: ``exact`` for the published data set, else a description of the difference.
    """

    name: str
    features: Tensor
    labels: Tensor
    relations: dict[str, Tensor]
    variant: str = "exact"

    @property
    def num_nodes(self) -> int:
        return self.features.shape[0]

    def sha256(self) -> str:
        """Hash of features, labels and edges, independent of the file format."""
        digest = hashlib.sha256()
        for tensor in (self.features, self.labels):
            digest.update(np.ascontiguousarray(tensor.numpy()))
        for name in sorted(self.relations):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.relations[name].numpy().astype(np.int32, copy=False)))
        return digest.hexdigest()


def check_graph(graph: NodeGraph) -> None:
    """Check everything that would otherwise surface later as NaN, an index error or a wrong number.

    Raises:
        UserError: A shape is wrong; there are no features, or not finite ones; labels are outside {0, 1, -1} or of one
            class; there is no relation, or one that is empty or has a node index out of range.
    """
    features, labels, where = graph.features, graph.labels, f"the graph {graph.name!r}"
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise UserError(
            f"{where} needs features (N, F) and labels (N,), but has {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if features.shape[1] == 0:
        raise UserError(f"{where} has no features: save at least one column, such as the degree of each node")
    bad = ~torch.isfinite(features).all(dim=1)
    if bad.any():
        raise UserError(
            f"{where} has features that are NaN or infinite at {int(bad.sum())} nodes, first at node "
            f"{int(bad.nonzero()[0])}: fill them in (for example with the column's mean) or leave those nodes out"
        )
    known = (labels == 0) | (labels == 1) | (labels == UNLABELLED)
    if not known.all():
        values = ", ".join(str(v) for v in labels[~known].unique()[:5].tolist())
        raise UserError(f"{where} has labels {values}; a label is 0 (benign), 1 (anomalous) or -1 (unlabelled)")
    for label, kind in ((0, "benign"), (1, "anomalous")):
        if not (labels == label).any():
            hint = "; -1 means unlabelled: save benign nodes as 0" if bool((labels == UNLABELLED).any()) else ""
            raise UserError(
                f"{where} has no node with label {label} ({kind}), only {sorted(labels.unique().tolist())}{hint}"
            )
    if not graph.relations:
        raise UserError(f"{where} has no edges: attention needs at least one relation")
    for name, edge_index in graph.relations.items():
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise UserError(f"relation {name!r} of {where} must be (2, E), but is {tuple(edge_index.shape)}")
        if not is_integer(edge_index):
            raise UserError(f"relation {name!r} of {where} must hold integer node ids, but holds {edge_index.dtype}")
        if edge_index.numel() == 0:
            raise UserError(f"relation {name!r} of {where} has no edges: leave it out of the file")
        if (edge_index[0] == edge_index[1]).all():
            raise UserError(
                f"relation {name!r} of {where} joins nodes to themselves only: leave it out of the file "
                "(data.self_loops=true adds a loop at every node)"
            )
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= graph.num_nodes:
            raise UserError(
                f"relation {name!r} of {where} names nodes {low} .. {high}, "
                f"but the nodes are 0 .. {graph.num_nodes - 1}"
            )


def drop_columns(graph: NodeGraph, columns: Sequence[int]) -> NodeGraph:
    """``graph`` without some columns of its features.

    Raises:
        UserError: There is no such column, or none would be left.
    """
    if not columns:
        return graph
    width = graph.features.shape[1]
    wrong = [column for column in columns if not isinstance(column, int) or not 0 <= column < width]
    if wrong or len(set(columns)) == width:
        raise UserError(
            f"data.drop_features={list(columns)} must name some of the columns 0 .. {width - 1} of {graph.name!r}"
        )
    kept = [column for column in range(width) if column not in columns]
    return replace(graph, features=graph.features[:, kept])


def edge_keys(edge_index: Tensor, num_nodes: int) -> np.ndarray:
    """Sorted keys target * N + source, one per edge, (E,) int64."""
    keys = edge_index[1].numpy().astype(np.int64)
    keys *= num_nodes
    keys += edge_index[0].numpy()
    keys.sort()
    return keys


def from_keys(keys: np.ndarray, num_nodes: int) -> Tensor:
    """Inverse of :func:`edge_keys`: (2, E) int32, sorted by target."""
    edge_index = np.empty((2, len(keys)), dtype=np.int32)
    np.divmod(keys, num_nodes, out=(edge_index[1], edge_index[0]), casting="same_kind")
    return torch.from_numpy(edge_index)


def without_repeats(keys: np.ndarray) -> np.ndarray:
    """Unique values of sorted keys."""
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def make_undirected(edge_index: Tensor, num_nodes: int, name: str, treatment: str) -> Tensor:
    """Check, or restore, the reverse of every edge of a relation.

    Args:
        edge_index: Edges, (2, E).
        num_nodes: Number of nodes N.
        name: Name of the relation in error messages.
        treatment: Treatment of edges without their reverse. ``error``: raise. ``mirror``: add the reverse of every edge
            and merge repeated edges. ``keep``: the graph is directed, and a node attends to the sources of its edges.

    Raises:
        UserError: Some edges lack their reverse and ``treatment`` is ``error``, or ``treatment`` is unknown.
    """
    if treatment not in ("error", "mirror", "keep"):
        raise UserError(f"data.one_way_edges must be error, mirror or keep, not {treatment!r}")
    if treatment == "keep":
        return edge_index
    keys = edge_keys(edge_index, num_nodes)
    reverse = edge_keys(edge_index.flip(0), num_nodes)
    if np.array_equal(keys, reverse):
        return edge_index
    if treatment == "mirror":
        both = np.concatenate([keys, reverse])
        both.sort()
        return from_keys(without_repeats(both), num_nodes)
    lone = np.setdiff1d(keys, reverse)
    example = lone[0] if len(lone) else keys[np.flatnonzero(keys != reverse)[0]]
    target, source = divmod(int(example), num_nodes)
    raise UserError(
        f"relation {name!r} should be undirected, but {len(lone) or 'some repeated'} of its {len(keys)} edges lack "
        f"their reverse, for example {source} -> {target}: set data.one_way_edges=mirror to add every edge's reverse, "
        "or data.one_way_edges=keep to let a node attend to the sources of its edges only"
    )


def neighbourhoods(graph: NodeGraph, merge: bool, self_loops: bool, repeated_edges: bool) -> dict[str, Tensor]:
    """Edges of each attention of the model.

    Args:
        graph: Checked graph with edges in both directions.
        merge: If True, merge all relations into one neighbourhood (table 1). If False, one neighbourhood per relation
            (table 12).
        self_loops: If True, every node is its own neighbour, once. If False, no node is.
        repeated_edges: If True, repeated edges count with their multiplicity. If False, once.
    """
    relations = graph.relations
    if merge:
        parts = list(relations.values())
        relations = {"merged": parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)}
    return {
        name: _neighbourhood(edge_index, graph.num_nodes, self_loops, repeated_edges)
        for name, edge_index in relations.items()
    }


def _neighbourhood(edge_index: Tensor, num_nodes: int, self_loops: bool, repeated_edges: bool) -> Tensor:
    between = edge_index[0] != edge_index[1]
    edge_index = edge_index if bool(between.all()) else edge_index[:, between]
    if not repeated_edges:
        edge_index = from_keys(without_repeats(edge_keys(edge_index, num_nodes)), num_nodes)
    if self_loops:
        loops = torch.arange(num_nodes, dtype=edge_index.dtype).expand(2, -1)
        edge_index = torch.cat([edge_index, loops], dim=1)
    return edge_index


def components(graph: NodeGraph, relation: str) -> np.ndarray:
    """Connected component of each node along one relation, (N,).

    Raises:
        UserError: The graph has no relation of this name.
    """
    from scipy.sparse.csgraph import connected_components

    if relation not in graph.relations:
        raise UserError(
            f"{graph.name} has no relation {relation!r} for data.group_by, only {', '.join(graph.relations)}"
        )
    rows, columns = graph.relations[relation].numpy()
    edges = csr_matrix((np.ones(len(rows)), (rows, columns)), (graph.num_nodes,) * 2)
    return connected_components(edges, directed=False)[1]


def reverse_cuthill_mckee_order(relations: Iterable[Tensor], num_nodes: int) -> Tensor:
    """Reverse Cuthill-McKee order of the nodes; nodes of equal degree come in the order of their ids.

    Neighbours stand near each other in it, so rows that are gathered one after another lie in the same pages of memory.
    This pays if the graph has communities.

    scipy's function of this name sorts degrees by an unstable sort, whose order of ties depends on the instruction set
    of the CPU (AVX2, AVX-512). An order of the nodes that differs between machines changes what dropout draws and how
    sums round.

    Args:
        relations: Edges of each relation, (2, E). The order is that of all of them together.
        num_nodes: Number of nodes N.

    Returns:
        Node indices in their new order, (N,) int64.
    """
    source, target = np.concatenate([edge_index.numpy().astype(np.int32) for edge_index in relations], axis=1)
    by_degree = np.argsort(np.bincount(source, minlength=num_nodes), kind="stable")
    rank = np.empty(num_nodes, np.int32)
    rank[by_degree] = np.arange(num_nodes, dtype=np.int32)
    # In ranks, rows with ascending columns list neighbours by degree, and every search starts at the lowest rank left.
    graph = csr_matrix((np.ones(len(source), np.bool_), (rank[source], rank[target])), (num_nodes, num_nodes))
    graph.sort_indices()
    seen, levels = np.diff(graph.indptr) == 0, []
    levels.append(np.flatnonzero(seen))  # nodes without edges: nothing to search from
    for root in np.flatnonzero(~seen):
        if seen[root]:
            continue
        level = np.array([root])
        while len(level):
            seen[level] = True
            levels.append(level)
            level = _next_level(graph, level, seen)
    return torch.from_numpy(by_degree[np.concatenate(levels)][::-1].copy())


def _next_level(graph: csr_matrix, level: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Unseen neighbours of the nodes ``level``, without repetition, in the order of discovery."""
    first = graph.indptr[level]
    count = graph.indptr[level + 1] - first
    offset = np.repeat(first - (np.cumsum(count) - count), count)
    found = graph.indices[offset + np.arange(len(offset))]
    found = found[~seen[found]]
    _, position = np.unique(found, return_index=True)
    return found[np.sort(position)]
