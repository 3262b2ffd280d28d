"""Graphs of one's own: a file with a list of torch_geometric graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from et.errors import UserError
from et.graphs.batch import GraphBatch, pack
from et.graphs.made import hash_graphs
from et.graphs.sources import SPLITS, Source, degree_features
from et.pyg_file import load_pyg
from et.record import USER_DATA


def load_graph_list(path: str | Path | None) -> Source:
    """Graphs that ``torch.save`` wrote: a list of torch_geometric Data, or such lists by ``train``, ``val``, ``test``.

    Each Data has ``y`` and ``edge_index`` (2, E) with both directions of every edge; ``x`` (n, F), else the nodes'
    degrees are the features; and, in all of them or in none, ``edge_attr`` (E, P). ``y`` is one number, or one a node:
    whole numbers are classes, real ones targets of a regression. As with TUDataset, edges of a node to itself are left
    out and repeated edges count once, with the sum of their features.

    Raises:
        UserError: no such file, not of that form, or something in it that no graph has.
    """
    if path is None:
        raise UserError("data.path names the file with the list of graphs: set it")
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: set data.path to a list of torch_geometric Data saved by torch.save")
    content = load_pyg(path)
    if isinstance(content, dict) and set(content) == set(SPLITS):
        counts = [len(content[part]) for part in SPLITS]
        split = dict(zip(SPLITS, torch.arange(sum(counts)).split(counts), strict=True))
        if 0 in counts:
            raise UserError(f"{path} has no graphs in {SPLITS[counts.index(0)]!r}")
        content = [graph for part in SPLITS for graph in content[part]]
    else:
        split = None
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} holds neither a list of graphs nor such lists by {', '.join(SPLITS)}")
    graphs = pack_list(content, str(path))
    return Source(graphs, USER_DATA, hash_graphs(graphs), split)


def pack_list(graphs: Sequence[Any], where: str) -> GraphBatch:
    """A list of torch_geometric Data as one batch.

    Raises:
        UserError: a graph lacks what others have, has edges one way only, or targets of another number than its own.
    """
    for key in ("y", "edge_index"):
        _require(graphs, key, where)
    sizes = torch.tensor([graph.num_nodes for graph in graphs])
    targets = torch.tensor([graph.y.numel() for graph in graphs])
    level = "graph" if (targets == 1).all() else "node"
    if level == "node" and not torch.equal(targets, sizes):
        wrong = int((targets != sizes).nonzero()[0])
        raise UserError(
            f"graph {wrong} of {where} has {sizes[wrong]} nodes and {targets[wrong]} targets y: either every graph has "
            "one, or every node"
        )
    edges = [_simple_edges(number, graph, where) for number, graph in enumerate(graphs)]
    edge_index = torch.cat([index for index, _ in edges], dim=1)
    edge_counts = torch.tensor([index.shape[1] for index, _ in edges])
    edge_attr = None
    if any(attr is not None for _, attr in edges):
        _require(graphs, "edge_attr", where)
        edge_attr = torch.cat([attr for _, attr in edges])
    if any(graph.x is not None for graph in graphs):
        _require(graphs, "x", where)
        x = torch.cat([graph.x.reshape(graph.num_nodes, -1) for graph in graphs])
    else:
        x = degree_features(edge_index, sizes, edge_counts)
    y = torch.cat([graph.y.reshape(-1) for graph in graphs])
    y = y.float() if y.is_floating_point() else y.long()
    return pack(sizes, edge_counts, x, edge_index, edge_attr, y, level)


def _simple_edges(number: int, graph: Any, where: str) -> tuple[Tensor, Tensor | None]:
    """Edges without loops and repetitions, and their features (E, P)."""
    from torch_geometric.utils import coalesce, is_undirected, remove_self_loops

    attr = graph.edge_attr
    if attr is not None:
        attr = attr.float().reshape(graph.edge_index.shape[1], -1)
    edge_index, attr = remove_self_loops(graph.edge_index, attr)
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < graph.num_nodes:
        raise UserError(f"an edge of graph {number} of {where} names a node outside 0 .. {graph.num_nodes - 1}")
    edge_index, attr = coalesce(edge_index.long(), attr, num_nodes=graph.num_nodes, reduce="sum")
    if not is_undirected(edge_index, num_nodes=graph.num_nodes):
        raise UserError(
            f"graph {number} of {where} has edges without their reverse: torch_geometric.utils.to_undirected adds them"
        )
    return edge_index, attr


def _require(graphs: Sequence[Any], key: str, where: str) -> None:
    for number, graph in enumerate(graphs):
        if getattr(graph, key, None) is None:
            raise UserError(f"graph {number} of {where} lacks {key}")
