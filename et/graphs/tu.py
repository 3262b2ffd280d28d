"""Reader of TUDataset's format: text files, read by pandas and checked against each other."""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from et.graphs.batch import GraphBatch, pack
from et.graphs.published import PUBLISHED_TU
from et.graphs.sources import Source, download, files_of, hash_files, warn_of_variant
from et.graphs.synthetic import hash_graphs
from et.runs.record import COUNTS_ONLY, USER_DATA
from et.utils.errors import UserError

MOST_LABELS = 10_000  # each becomes a column of the features: more are a damaged file
TU_URL = "https://www.chrsmrrs.com/graphkerneldatasets"


def load_tu(name: str, root: Path, *, drop_empty: bool = False) -> Source:
    """Read a data set of the TUDataset collection from <root>/tu/NAME/raw; download it if that folder does not exist.

    Node features are the node attributes followed by the one-hot node labels; edge features likewise. If nodes have
    neither, ``x`` is the node degree (one column; see :func:`degree_features`). As in torch_geometric, self-loops are
    removed, and repeated edges are merged with the sum of their features.

    Args:
        name: Name of the data set.
        root: The data root.
        drop_empty: Leave out graphs that have a label and no nodes. If False, such a graph is an error.

    Raises:
        UserError: Files are missing and cannot be downloaded, are truncated, or contradict each other.
    """
    raw = root / "tu" / name / "raw"
    if not raw.exists():
        download(
            lambda: fetch_tu(name, raw),
            ", ".join(file.name for file in files_of("tu", name, root)),
            f"{TU_URL}/{name}.zip",
            raw,
        )
    absent = [file.name for file in files_of("tu", name, root) if not file.exists()]
    if absent:
        raise UserError(f"{raw} lacks {', '.join(absent)}: {_anew(name)}")
    digest = hash_files(sorted(raw.glob(f"{name}_*.txt")))
    tables = read_tables(raw, name)
    check_tables(tables, raw, name)
    graphs, dropped = assemble(tables, raw, name, drop_empty)
    return Source(graphs, tu_variant(name, graphs), digest, dropped_empty=dropped)


def fetch_tu(name: str, raw: Path) -> None:
    """Download the raw files of a data set into ``raw``.

    torch_geometric's TUDataset would also unpickle a processed folder beside them, which may execute code.
    """
    from torch_geometric.data import download_url, extract_zip

    raw.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=raw.parent) as folder:
        extract_zip(download_url(f"{TU_URL}/{name}.zip", folder, log=False), folder, log=False)
        (Path(folder) / name).rename(raw)


def tu_variant(name: str, graphs: GraphBatch) -> str:
    """Variant of a folder in TUDataset's format: a data set of the paper, another edition of one, or the user's own."""
    published = PUBLISHED_TU.get(name)
    if published is None:
        return f"{USER_DATA} in TUDataset's form"
    count = len(graphs)
    found = (count, round(graphs.num_nodes / count, 2), round(graphs.num_edges / 2 / count, 2), graphs.x.shape[1])
    expected = (published.graphs, published.nodes, published.edges, published.features)
    what = ("graphs", "nodes a graph", "edges a graph", "features")
    differ = [f"{f} {w} where table 8 has {e}" for f, e, w in zip(found, expected, what, strict=True) if f != e]
    if not differ and published.sha256 is not None and hash_graphs(graphs) != published.sha256:
        differ = ["as large as the published data set, with other contents"]
    if differ:
        return warn_of_variant(name, f"{USER_DATA} in TUDataset's form, saved as {name}: {', '.join(differ)}")
    return "exact" if published.sha256 else COUNTS_ONLY


Tables = dict[str, np.ndarray]  # the contents of NAME_<key>.txt, (lines, columns)


def read_tables(raw: Path, name: str) -> Tables:
    """Numbers in all files of a data set, by kind: integers, and floats for attributes.

    Raises:
        UserError: A line is truncated, blank, or not numeric.
    """
    kinds = ("A", "graph_indicator", "graph_labels", "node_labels", "edge_labels")
    real = ("node_attributes", "edge_attributes", "graph_attributes")
    paths = {kind: raw / f"{name}_{kind}.txt" for kind in (*kinds, *real)}
    if paths["A"].is_file() and not paths["A"].read_bytes().strip():
        raise _broken(raw, name, f"{name}_A.txt has no edges (graphs of one's own without any: data=graph_list)")
    return {k: _column(p, np.float64 if k in real else np.int64) for k, p in paths.items() if p.exists()}


def assemble(tables: Tables, raw: Path, name: str, drop_empty: bool) -> tuple[GraphBatch, int]:
    """Graphs of checked tables, and the number of graphs without nodes that were left out."""
    from torch_geometric.utils import coalesce, remove_self_loops

    nodes = tables["graph_indicator"][:, 0] - 1
    count = len(tables["graph_labels"])
    sizes = torch.from_numpy(np.bincount(nodes, minlength=count))
    edge_index = torch.from_numpy(tables["A"].T - 1).contiguous()
    x, edge_attr = _features(tables, "node"), _features(tables, "edge")
    edge_index, edge_attr = remove_self_loops(edge_index, edge_attr)
    edge_index, edge_attr = coalesce(edge_index, edge_attr, num_nodes=len(nodes))
    graph_of_edge = torch.from_numpy(nodes)[edge_index[0]]
    first = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    edge_counts = torch.bincount(graph_of_edge, minlength=count)
    edge_index = edge_index - first[graph_of_edge]
    full = sizes > 0
    empty = int((~full).sum())
    if empty and not drop_empty:
        raise UserError(
            f"{raw}: {empty} of {count} graphs have a label and no nodes, first graph {int(full.int().argmin()) + 1}: "
            "set data.drop_empty=true to leave them out"
        )
    sizes, edge_counts = sizes[full], edge_counts[full]
    if x is None:
        x = degree_features(edge_index, sizes, edge_counts)
    return pack(sizes, edge_counts, x, edge_index, edge_attr, _targets(tables, full)), empty


def _features(tables: Tables, of: str) -> Tensor | None:
    """Attributes followed by one-hot labels of ``node`` or ``edge``, (lines, columns); None if there are neither."""
    columns: list[Tensor] = []
    if f"{of}_attributes" in tables:
        columns.append(torch.from_numpy(tables[f"{of}_attributes"]))
    for labels in tables.get(f"{of}_labels", np.empty((0, 0), np.int64)).T:
        columns.append(F.one_hot(torch.from_numpy(labels - labels.min())).float())
    return torch.cat(columns, dim=1) if columns else None


def _targets(tables: Tables, kept: Tensor) -> Tensor:
    """Targets of the graphs ``kept`` (G,) bool: attributes if there are any, else classes renumbered in ascending
    order.
    """
    if "graph_attributes" in tables:
        return torch.from_numpy(tables["graph_attributes"])[kept].squeeze(1).float()
    return torch.from_numpy(tables["graph_labels"][:, 0])[kept].unique(return_inverse=True)[1]


def check_tables(tables: Tables, raw: Path, name: str) -> None:
    """Raise UserError unless the files of a TU data set agree in their lengths, labels, nodes and edges."""
    for kind, columns in (("A", 2), ("graph_indicator", 1), ("graph_labels", 1)):
        if tables[kind].shape[1] != columns:
            raise _broken(
                raw, name, f"{name}_{kind}.txt has {tables[kind].shape[1]} numbers a line where {columns} belong"
            )
    indicator, graphs = tables["graph_indicator"][:, 0], len(tables["graph_labels"])
    lengths = {"node": len(indicator), "graph": graphs, "edge": len(tables["A"])}
    for kind, values in tables.items():
        count = lengths.get(kind.partition("_")[0])
        if kind.endswith(("labels", "attributes")) and len(values) != count:
            raise _broken(raw, name, f"{name}_{kind}.txt has {len(values)} lines where {count} belong")
        if kind in ("node_labels", "edge_labels") and np.ptp(values) >= MOST_LABELS:
            raise _broken(raw, name, f"{name}_{kind}.txt has labels from {values.min()} to {values.max()}")
    if (np.diff(indicator) < 0).any():
        raise _broken(raw, name, f"{name}_graph_indicator.txt does not list the nodes graph by graph")
    if indicator.min() < 1:
        raise _broken(raw, name, f"{name}_graph_indicator.txt names graph {indicator.min()}, they count from 1")
    if indicator.max() > graphs:
        raise _broken(raw, name, f"{name}_graph_labels.txt has {graphs} graphs, nodes name {indicator.max()}")
    _check_edges(raw, name, tables["A"], indicator)


def _check_edges(raw: Path, name: str, edges: np.ndarray, indicator: np.ndarray) -> None:
    """Raise UserError unless edges join nodes of one graph and exist in both directions; ``indicator``: graph of each
    node.
    """
    outside = (edges < 1) | (edges > len(indicator))
    if outside.any():
        line, column = np.argwhere(outside)[0]
        raise _broken(
            raw, name,
            f"line {line + 1} of {name}_A.txt names node {edges[line, column]}, there are nodes 1 .. {len(indicator)}",
        )  # fmt: skip
    across = indicator[edges[:, 0] - 1] != indicator[edges[:, 1] - 1]
    if across.any():
        raise _broken(raw, name, f"line {int(across.argmax()) + 1} of {name}_A.txt joins two different graphs")
    there, back = edges @ [len(indicator), 1], edges @ [1, len(indicator)]
    lonely = ~np.isin(there, back)
    if lonely.any():
        a, b = edges[lonely.argmax()]
        raise _broken(raw, name, f"{name}_A.txt has the edge {a}, {b} but not {b}, {a}")


def degree_features(edge_index: Tensor, sizes: Tensor, edge_counts: Tensor) -> Tensor:
    """In-degree of each node, (N, 1), for graphs without node features; node indices start at 0 in each graph."""
    first = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    target = edge_index[1] + torch.repeat_interleave(first, edge_counts)
    return torch.bincount(target, minlength=int(sizes.sum())).float()[:, None]


def _column(path: Path, kind: type = np.int64) -> np.ndarray:
    """All numbers of a text file, (lines, columns).

    Raises:
        UserError: A line is truncated, blank, or not of the numeric ``kind``.
    """
    import pandas as pd

    try:
        text = BytesIO(path.read_bytes().rstrip())  # blank lines at the end are no lines
        values = pd.read_csv(
            text, header=None, dtype=kind, skipinitialspace=True, skip_blank_lines=False, float_precision="round_trip",
            encoding="utf-8-sig",
        ).to_numpy(copy=True)  # fmt: skip
        if not np.isfinite(values).all():
            raise ValueError("a number is missing or infinite")
        return values
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} is empty, truncated or damaged ({str(error).splitlines()[0]})") from error


def _broken(raw: Path, name: str, what: str) -> UserError:
    return UserError(f"{raw}: {what}; the files are incomplete or damaged: {_anew(name)}")


def _anew(name: str) -> str:
    return f"fetch them again from {TU_URL}/{name}.zip, or write them again if they are your own"
