"""Data sets in TUDataset's form: read through torch_geometric, offline first, and checked line by line before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from et.errors import UserError
from et.graphs.batch import pack
from et.graphs.sources import Source, download, files_of, fresh_read, hash_files, read_processed
from et.record import USER_DATA

MOST_LABELS = 10_000  # each becomes a column of the features: more are a damaged file
# Graphs in the data sets of table 2 (table 8).
PUBLISHED_TU = {
    "MUTAG": 188, "ENZYMES": 600, "PROTEINS": 1113, "DD": 1178, "NCI1": 4110, "NCI109": 4127, "Mutagenicity": 4337,
    "FRANKENSTEIN": 4337,
}  # fmt: skip
TU_URL = "https://www.chrsmrrs.com/graphkerneldatasets"


def load_tu(name: str, root: Path, cache: Path) -> Source:
    """A data set of the TUDataset collection from <root>/tu/NAME/raw; downloaded where that folder is missing.

    Node features are the node attributes followed by the one-hot node labels; edge features likewise. Where nodes have
    neither, ``x`` is the node degree (one column; see :func:`degree_features`). As torch_geometric reads them, edges of
    a node to itself are left out, and an edge that stands there twice counts once, with the sum of its features.

    Raises:
        UserError: files are missing and cannot be downloaded, are cut short or contradict each other.
    """
    from torch_geometric.datasets import TUDataset

    files, raw = files_of("tu", name, root), root / "tu" / name / "raw"

    def read(folder: Path) -> list[Any]:
        class Cached(TUDataset):
            # The data root may be read-only, and a processed file must never outlive the raw files it was made from.
            processed_dir = property(lambda self: str(folder))

        return [Cached(str(root / "tu"), name, use_node_attr=True, use_edge_attr=True)]

    if not raw.exists():
        download(
            lambda: fresh_read(read, cache),
            ", ".join(file.name for file in files),
            f"{TU_URL}/{name}.zip",
            raw,
        )
    absent = [file.name for file in files if not file.exists()]
    if absent:
        raise UserError(f"{raw} lacks {', '.join(absent)}: {_anew(name)}")
    digest = hash_files(sorted(raw.glob(f"{name}_*.txt")))
    processed = cache / "tu" / f"{name}-{digest[:16]}.pt"
    if not processed.exists():  # else these very files have been checked before
        check_tu_folder(raw, name)

    ((data, slices),) = read_processed(read, processed, raw, _anew(name))
    sizes = torch.from_numpy(np.bincount(_column(raw / f"{name}_graph_indicator.txt")[:, 0] - 1))
    # torch_geometric's slices end at the last graph that has an edge.
    edge_counts = F.pad(slices["edge_index"].diff(), (0, len(sizes) - len(slices["edge_index"]) + 1))
    x = data.x if data.x is not None else degree_features(data.edge_index, sizes, edge_counts)
    graphs = pack(sizes, edge_counts, x, data.edge_index, data.edge_attr, data.y)
    return Source(graphs, tu_variant(name, len(sizes)), digest)


def tu_variant(name: str, count: int) -> str:
    """What a folder in TUDataset's form is: one of the paper's data sets, another edition of one, or the user's own."""
    published = PUBLISHED_TU.get(name)
    if published is None:
        return f"{USER_DATA} in TUDataset's form"
    return "exact" if count == published else f"{count} graphs where the published data set has {published}"


def check_tu_folder(raw: Path, name: str) -> None:
    """Raise UserError unless the files of a TU data set are whole and agree in their lengths."""
    lines = {path.stem.removeprefix(f"{name}_"): _count_lines(path) for path in raw.glob(f"{name}_*.txt")}
    if lines["A"] == 0:
        raise _broken(raw, name, f"{name}_A.txt has no edges (graphs of one's own without any: data=graph_list)")
    indicator = _rows(raw, name, "graph_indicator", 1)[:, 0]
    graph_labels = _rows(raw, name, "graph_labels", 1)[:, 0]
    expected = {
        "node_labels": len(indicator), "node_attributes": len(indicator), "graph_attributes": len(graph_labels),
        "edge_labels": lines["A"], "edge_attributes": lines["A"],
    }  # fmt: skip
    for kind, count in expected.items():
        if kind not in lines:
            continue
        if lines[kind] != count:
            raise _broken(raw, name, f"{name}_{kind}.txt has {lines[kind]} lines where {count} belong")
        values = _column(raw / f"{name}_{kind}.txt", np.float64 if kind.endswith("attributes") else np.int64)
        if kind.endswith("labels") and np.ptp(values) >= MOST_LABELS:
            raise _broken(raw, name, f"{name}_{kind}.txt has labels from {values.min()} to {values.max()}")
    if (np.diff(indicator) < 0).any():
        raise _broken(raw, name, f"{name}_graph_indicator.txt does not list the nodes graph by graph")
    if indicator.min() < 1:
        raise _broken(raw, name, f"{name}_graph_indicator.txt names graph {indicator.min()}, they count from 1")
    if indicator.max() > len(graph_labels):
        raise _broken(
            raw, name, f"{name}_graph_labels.txt has {len(graph_labels)} graphs, nodes name {indicator.max()}"
        )
    empty = np.setdiff1d(np.arange(1, len(graph_labels) + 1), indicator)
    if len(empty):
        raise _broken(raw, name, f"graph {empty[0]} has a label but no nodes")
    _check_edges(raw, name, indicator)


def _check_edges(raw: Path, name: str, indicator: np.ndarray) -> None:
    """Raise UserError unless edges stay within a graph and stand there both ways; ``indicator``: each node's graph."""
    edges = _rows(raw, name, "A", 2)
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
    """In-degrees as a feature, (N, 1), for graphs whose nodes have none; ``edge_index`` counts from 0 in each graph."""
    first = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    target = edge_index[1] + torch.repeat_interleave(first, edge_counts)
    return torch.bincount(target, minlength=int(sizes.sum())).float()[:, None]


def _rows(raw: Path, name: str, kind: str, columns: int) -> np.ndarray:
    """The whole numbers of one of the files; UserError unless there are ``columns`` of them a line."""
    values = _column(raw / f"{name}_{kind}.txt")
    if values.shape[1] != columns:
        raise _broken(raw, name, f"{name}_{kind}.txt has {values.shape[1]} numbers a line where {columns} belong")
    return values


def _column(path: Path, kind: type = np.int64) -> np.ndarray:
    """All numbers of a text file, line by line, (lines, columns).

    Raises:
        UserError: a line is cut short, is blank, or does not hold numbers of that ``kind``.
    """
    import pandas as pd

    try:
        values = pd.read_csv(path, header=None, dtype=kind, skipinitialspace=True, skip_blank_lines=False).to_numpy()
        if not np.isfinite(values).all():
            raise ValueError("a number is missing")
        return values
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} is empty, cut short or damaged ({str(error).splitlines()[0]})") from error


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _broken(raw: Path, name: str, what: str) -> UserError:
    return UserError(f"{raw}: {what}; the files are incomplete or damaged: {_anew(name)}")


def _anew(name: str) -> str:
    return f"take them anew from {TU_URL}/{name}.zip, or make them anew if they are your own"
