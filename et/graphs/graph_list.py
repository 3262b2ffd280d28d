"""The user's own graphs: a file with a list of torch_geometric graphs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from et.core.csr import is_integer
from et.graphs.batch import GraphBatch, pack
from et.graphs.sources import SPLITS, Source, consecutive
from et.graphs.synthetic import hash_graphs
from et.graphs.tu import degree_features
from et.runs.record import USER_DATA
from et.utils.errors import UserError
from et.utils.pyg_file import load_pyg

MASKS = ("train_mask", "val_mask", "test_mask")  # of nodes, as torch_geometric's data sets of one graph have them


def load_graph_list(path: str | Path | None, *, drop_empty: bool = False, types: bool = False) -> Source:
    """Read a file of ``torch.save``: a list of torch_geometric Data, or such lists under ``train``, ``val`` and
    ``test``.

    Each Data has ``y`` and ``edge_index`` (2, E) with both directions of every edge. ``x`` (n, F) is optional; without
    it, node degrees are the features. ``edge_attr`` (E, P) must be in all graphs or in none. ``y`` has one value per
    graph or per node: integers are classes, floats are regression targets. As with TUDataset, self-loops are removed,
    and repeated edges are merged with the sum of their features.

    Args:
        path: The file.
        drop_empty: Leave out graphs without nodes. If False, such a graph is an error.
        types: Whether features are types, which have no sum: repeated edges with one are then an error.

    Raises:
        UserError: The file does not exist, has another form, or holds an invalid graph.
    """
    if path is None:
        raise UserError("data.path names the file with the list of graphs: set it")
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: set data.path to a list of torch_geometric Data saved by torch.save")
    content, split, dropped = load_pyg(path), None, 0
    if drop_empty:
        content, dropped = without_empty(content)
    if isinstance(content, dict) and all(isinstance(content.get(part), list) for part in SPLITS):
        counts = [len(content[part]) for part in SPLITS]
        if 0 in counts:
            raise UserError(f"{path} has no graphs in {SPLITS[counts.index(0)]!r}")
        split = consecutive(counts)
        content = [graph for part in SPLITS for graph in content[part]]
    if isinstance(content, list) and len(content) in (2, 3) and isinstance(content[1], dict):
        raise UserError(
            f"{path} is a processed file of a torch_geometric data set: save its graphs instead, "
            "torch.save(list(dataset), FILE)"
        )
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} holds neither a list of graphs nor such lists by {', '.join(SPLITS)}")
    graphs = pack_list(content, str(path), types)
    if split is not None and (shared := shared_graphs(graphs, split)):
        warnings.warn(
            f"{path}: {', '.join(SPLITS)} share {shared} graph{'s' * (shared > 1)}: not all parts are of unseen graphs",
            stacklevel=2,
        )
    return Source(graphs, USER_DATA, hash_graphs(graphs, split), split, dropped)


def without_empty(content: Any) -> tuple[Any, int]:
    """``content`` without graphs that have no nodes, and their number; other content is returned unchanged."""
    if isinstance(content, dict):
        parts = {key: without_empty(value) for key, value in content.items()}
        return {key: kept for key, (kept, _) in parts.items()}, sum(dropped for _, dropped in parts.values())
    if not isinstance(content, list):
        return content, 0
    kept = [graph for graph in content if getattr(graph, "num_nodes", None) != 0]
    return kept, len(content) - len(kept)


def pack_list(graphs: Sequence[Any], where: str, types: bool = False) -> GraphBatch:
    """Build a batch from a list of torch_geometric Data.

    Args:
        graphs: The list.
        where: Name of the list in error messages.
        types: Whether features are types, which have no sum.

    Raises:
        UserError: A graph lacks a field that others have, has an edge in one direction only, has an array of the wrong
            shape, or repeats an edge that has a type.
    """
    for number, graph in enumerate(graphs):
        check_graph(graph, f"graph {number} of {where}")
    if masks := sorted({key for graph in graphs for key in MASKS if key in graph}):
        warnings.warn(
            f"the graphs of {where} have {', '.join(masks)}, which are not used: whole graphs are split, "
            f"and lists under {', '.join(SPLITS)} are a split of your own",
            stacklevel=2,
        )
    sizes = torch.tensor([graph.num_nodes for graph in graphs])
    targets = torch.tensor([graph.y.numel() for graph in graphs])
    level = "graph" if (targets == 1).all() else "node"
    if level == "node" and not torch.equal(targets, sizes):
        wrong = int((targets != sizes).nonzero()[0])
        raise UserError(
            f"graph {wrong} of {where} has {sizes[wrong]} nodes and {targets[wrong]} targets y: either every graph has "
            "one, or every node"
        )
    edges, attributes = zip(
        *(simple_edges(g, f"graph {n} of {where}", types) for n, g in enumerate(graphs)), strict=True
    )
    edge_index, edge_counts = torch.cat(edges, dim=1), torch.tensor([index.shape[1] for index in edges])
    x = stacked([graph.x for graph in graphs], sizes, "x", where)
    edge_attr = stacked(attributes, edge_counts, "edge_attr", where)
    y = torch.cat([graph.y.reshape(-1) for graph in graphs])
    return pack(
        sizes,
        edge_counts,
        degree_features(edge_index, sizes, edge_counts) if x is None else x,
        edge_index,
        edge_attr,
        y.float() if y.is_floating_point() else y.long(),
        level,
    )


def shared_graphs(graphs: GraphBatch, split: Mapping[str, Tensor]) -> int:
    """Number of different graphs, with equal features, edges and targets, that several parts have."""
    x, y, ptr, edge_ptr = graphs.x.numpy(), graphs.y.numpy(), graphs.ptr.tolist(), graphs.edge_ptr.tolist()
    edge_index, edge_attr = graphs.edge_index.numpy(), graphs.edge_attr

    def content(number: int) -> tuple[bytes, ...]:
        nodes, edges = slice(*ptr[number : number + 2]), slice(*edge_ptr[number : number + 2])
        own = [x[nodes], edge_index[:, edges] - ptr[number], y[number if graphs.level == "graph" else nodes]]
        return tuple(array.tobytes() for array in (*own, *([] if edge_attr is None else [edge_attr[edges].numpy()])))

    parts = [{content(number) for number in numbers.tolist()} for numbers in split.values()]
    return sum(count > 1 for count in Counter(key for part in parts for key in part).values())


def check_graph(graph: Any, where: str) -> None:
    """Raise UserError unless ``graph`` is a torch_geometric Data with consistent arrays."""
    for key, needed in (("y", True), ("edge_index", True), ("x", False), ("edge_attr", False)):
        value = getattr(graph, key, None)
        if value is None and needed:
            raise UserError(f"{where} lacks {key}")
        if value is not None and not isinstance(value, Tensor):
            raise UserError(f"{key} of {where} is not a tensor but {type(value).__name__}")
    edge_index = graph.edge_index
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or not is_integer(edge_index):
        raise UserError(
            f"edge_index of {where} must be whole numbers (2, E), not {edge_index.dtype} {tuple(edge_index.shape)}"
        )
    if graph.x is None and "num_nodes" not in graph:  # which torch_geometric would guess from the edges
        raise UserError(f"{where} does not say how many nodes it has: set x or num_nodes")
    for key in ("x", "edge_attr", "y"):
        value = getattr(graph, key)
        if value is not None and value.is_complex():
            raise UserError(f"{key} of {where} holds complex numbers: save real ones")
    if graph.y.dim() > 1 and graph.y.shape[1:].numel() > 1:
        raise UserError(
            f"y of {where} is of shape {tuple(graph.y.shape)}: save one number for the graph or for each node, and a "
            "class as 0, 1, 2 ..."
        )
    for key, count in (("x", graph.num_nodes), ("edge_attr", edge_index.shape[1])):
        value = getattr(graph, key)
        if value is not None and (value.dim() == 0 or len(value) != count):
            raise UserError(f"{key} of {where} is of shape {tuple(value.shape)}, and {count} rows belong there")
    edge_index = edge_index.long()
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < graph.num_nodes:
        raise UserError(f"an edge of {where} names a node outside 0 .. {graph.num_nodes - 1}")


def simple_edges(graph: Any, where: str, types: bool = False) -> tuple[Tensor, Tensor | None]:
    """Edges (2, E) without self-loops and repetitions, and their features (E, ...)."""
    from torch_geometric.utils import coalesce, is_undirected, remove_self_loops

    if graph.edge_index.numel() == 0:
        return graph.edge_index.long(), None
    attr = graph.edge_attr
    if attr is not None and not attr.is_floating_point():
        attr = attr.double()  # sums of small integers must not wrap around
    edge_index, attr = remove_self_loops(graph.edge_index.long(), attr)
    given = edge_index.shape[1]
    edge_index, attr = coalesce(edge_index, attr, num_nodes=graph.num_nodes, reduce="sum")
    if types and attr is not None and len(attr) < given:
        raise UserError(f"{where} repeats an edge, and data.one_hot=true knows one type of each: keep one of them")
    if not is_undirected(edge_index, num_nodes=graph.num_nodes):
        raise UserError(f"{where} has edges without their reverse: torch_geometric.utils.to_undirected adds them")
    return edge_index, attr


def stacked(values: Sequence[Tensor | None], counts: Tensor, key: str, where: str) -> Tensor | None:
    """Concatenate the rows of all graphs, (rows, columns); None if no graph has any.

    Raises:
        UserError: A graph lacks its rows, or its rows have another width.
    """
    widths = {value[0].numel() for value in values if value is not None and len(value)}
    if not widths or widths == {0}:
        return None
    if len(widths) > 1:
        raise UserError(f"{key} in {where} has {', '.join(map(str, sorted(widths)))} columns: all graphs need as many")
    (width,) = widths
    for number, (value, count) in enumerate(zip(values, counts.tolist(), strict=True)):
        if value is None and count:
            raise UserError(f"graph {number} of {where} lacks {key}, which others have")
    return torch.cat([value.reshape(-1, width) for value in values if value is not None and len(value)])
