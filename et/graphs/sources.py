"""Where the graphs come from: TUDataset, GNNBenchmark and ZINC through torch_geometric's classes, offline first."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from et.errors import UserError
from et.graphs.batch import GraphBatch, pack
from et.graphs.plain_pickle import only_data
from et.record import USER_DATA

SPLITS = ("train", "val", "test")
MOST_LABELS = 10_000  # each becomes a column of the features: more are a damaged file
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE)
# Graphs in the data sets of table 2 (table 8).
PUBLISHED_TU = {
    "MUTAG": 188, "ENZYMES": 600, "PROTEINS": 1113, "DD": 1178, "NCI1": 4110, "NCI109": 4127, "Mutagenicity": 4337,
    "FRANKENSTEIN": 4337,
}  # fmt: skip
TU_URL = "https://www.chrsmrrs.com/graphkerneldatasets"


# What each source reads below the data root.
FILES = {
    "tu": [f"tu/{{name}}/raw/{{name}}_{kind}.txt" for kind in ("A", "graph_indicator", "graph_labels")],
    "gnnbench": ["gnnbench/{name}/raw/{name}_v2.pt"],
    "zinc": [f"zinc/raw/{split}.{kind}" for split in SPLITS for kind in ("pickle", "index")],
    "zinc_variant": ["zinc/zinc12k_variant.npz"],
    "extracted": ["mnist/train.npz", "mnist/test.npz"],
}


def files_of(source: str, name: str, root: Path) -> list[Path]:
    """The files that ``source`` cannot do without for the data set ``name``; none for what is made or embedded."""
    return [root / file.format(name=name) for file in FILES.get(source, [])]


@dataclass(frozen=True)
class Source:
    """A data set as it was read.

    Attributes:
        graphs: all of its graphs.
        variant: ``exact``, or in words what differs from the published data set of that name.
        sha256: of the files it was read from, or of the graphs where they were generated.
        split: numbers of the graphs in ``train``, ``val`` and ``test`` where the data set has an official split.
    """

    graphs: GraphBatch
    variant: str
    sha256: str
    split: dict[str, Tensor] | None = None


def load_tu(name: str, root: Path, cache: Path) -> Source:
    """A data set of the TUDataset collection from <root>/tu/NAME/raw; downloaded where that folder is missing.

    Node features are the node attributes followed by the one-hot node labels; edge features likewise. Where nodes have
    neither, ``x`` is the node degree (one column; see :func:`degree_features`). As torch_geometric reads them, edges of
    a node to itself are left out, and an edge that stands there twice counts once, with the sum of its features.

    Raises:
        UserError: files are missing and cannot be downloaded, are cut short or contradict each other.
    """
    from torch_geometric.datasets import TUDataset

    raw = root / "tu" / name / "raw"
    if not raw.exists():
        _download(
            lambda: TUDataset(str(root / "tu"), name),
            ", ".join(file.name for file in files_of("tu", name, root)),
            f"{TU_URL}/{name}.zip",
            raw,
        )
    absent = [file.name for file in files_of("tu", name, root) if not file.exists()]
    if absent:
        raise UserError(f"{raw} lacks {', '.join(absent)}: take it from {TU_URL}/{name}.zip")
    digest = hash_files(sorted(raw.glob(f"{name}_*.txt")))
    processed = cache / "tu" / f"{name}-{digest[:16]}"
    if not processed.exists():  # else these very files have been checked before
        check_tu_folder(raw, name)

    def read(folder: Path) -> list[Any]:
        class Cached(TUDataset):
            # The data root may be read-only, and a processed file must never outlive the raw files it was made from.
            processed_dir = property(lambda self: str(folder))

        return [Cached(str(root / "tu"), name, use_node_attr=True, use_edge_attr=True)]

    ((data, slices),) = _read(read, processed, raw, f"{TU_URL}/{name}.zip")
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


def load_gnn_benchmark(name: str, root: Path, cache: Path) -> Source:
    """MNIST, CIFAR10, PATTERN or CLUSTER from <root>/gnnbench/NAME/raw with its official split.

    For the two image data sets the superpixels' coordinates are appended to their intensities (appendix D.3).
    """
    from torch_geometric.datasets import GNNBenchmarkDataset

    if name not in GNNBenchmarkDataset.urls:
        raise UserError(f"GNNBenchmark has {', '.join(GNNBenchmarkDataset.urls)}, not {name!r}")
    url = GNNBenchmarkDataset.urls[name]
    raw = root / "gnnbench" / name / "raw"
    (file,) = files_of("gnnbench", name, root)
    if not file.exists():
        _download(lambda: GNNBenchmarkDataset(str(root / "gnnbench"), name), file.name, url, raw)
    digest = hash_files([file])

    def read(processed: Path) -> list[Any]:
        class Cached(GNNBenchmarkDataset):
            processed_dir = property(lambda self: str(processed))

        return [Cached(str(root / "gnnbench"), name, split=split) for split in SPLITS]

    parts = _read(read, cache / "gnnbench" / f"{name}-{digest[:16]}", raw, url)
    graphs, split = _join(parts, "node" if name in ("PATTERN", "CLUSTER") else "graph")
    return Source(graphs, "exact", digest, split)


def load_zinc(name: str, root: Path, cache: Path) -> Source:
    """ZINC (250k molecules), or its published subset of 12k for ``name="ZINC12k"``, from <root>/zinc/raw.

    Atom and bond types are one number each, as the released code feeds them.
    """
    from torch_geometric.datasets import ZINC

    raw = root / "zinc" / "raw"
    files = files_of("zinc", name, root)
    if not raw.exists():
        _download(lambda: ZINC(str(root / "zinc")), "train.pickle, train.index, ...", ZINC.url, raw)
    absent = [file.name for file in files if not file.exists()]
    if absent:
        # torch_geometric would delete the folder and download it again.
        raise UserError(f"{raw} lacks {', '.join(absent)}; they are in {ZINC.url} and {ZINC.split_url.format('train')}")
    digest, subset = hash_files(files), name == "ZINC12k"

    def read(processed: Path) -> list[Any]:
        class Cached(ZINC):
            processed_dir = property(lambda self: str(processed))

        return [Cached(str(root / "zinc"), subset=subset, split=split) for split in SPLITS]

    parts = _read(read, cache / "zinc" / f"{name}-{digest[:16]}", raw, ZINC.url)
    graphs, split = _join(parts, "graph")
    return Source(graphs, "exact", digest, split)


def check_tu_folder(raw: Path, name: str) -> None:
    """Raise UserError unless the files of a TU data set are whole and agree in their lengths."""
    lines = {path.stem.removeprefix(f"{name}_"): _count_lines(path) for path in raw.glob(f"{name}_*.txt")}
    indicator = _column(raw / f"{name}_graph_indicator.txt")[:, 0]
    graph_labels = _column(raw / f"{name}_graph_labels.txt")[:, 0]
    edges = _column(raw / f"{name}_A.txt")
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
    if indicator.min() < 1 or indicator.max() > len(graph_labels):
        raise _broken(
            raw, name, f"{name}_graph_labels.txt has {len(graph_labels)} graphs, nodes name {indicator.max()}"
        )
    empty = np.setdiff1d(np.arange(1, len(graph_labels) + 1), indicator)
    if len(empty):
        raise _broken(raw, name, f"graph {empty[0]} has a label but no nodes")
    if edges.shape[1] != 2 or edges.min() < 1 or edges.max() > len(indicator):
        raise _broken(raw, name, f"{name}_A.txt names node {edges.max()}, there are nodes 1 .. {len(indicator)}")
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


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def cache_folder(root: Path, cache: str | Path | None = None) -> Path:
    """Where derived files go: ``cache``, else <root>/cache, else (with a read-only root) the user's cache folder."""
    if cache is not None:
        return Path(cache)
    folder = root / "cache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "energy-transformer" / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]


def _download(attempt: Callable[[], Any], files: str, address: str, folder: Path) -> None:
    """Let torch_geometric download; where that fails say what is needed, from where, and where it belongs."""
    existed = folder.parent.exists()
    try:
        attempt()
    except Exception as error:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if not existed and folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()
        raise UserError(
            f"no data in {folder} and it could not be downloaded ({type(error).__name__}): "
            f"put {files} of {address} into {folder} (the data root is paths.data or ET_DATA_DIR)"
        ) from error


def _read(
    read: Callable[[Path], list[Any]], processed: Path, raw: Path, address: str
) -> list[tuple[Any, dict[str, Tensor]]]:
    """(data, slices) of the InMemoryDatasets that ``read`` makes with their derived files in the folder it is given.

    Several processes may come here at once, such as the first jobs of a sweep: each derives the files in a folder of
    its own, and the first that is ready puts them to ``processed``. Files there that do not load are made anew.

    Raises:
        UserError: the published files in ``raw`` (from ``address``) cannot be read.
    """
    with only_data():
        if processed.exists():
            try:
                return [(dataset._data, dataset.slices) for dataset in read(processed)]
            except Exception:  # whatever a damaged file leads to
                shutil.rmtree(processed, ignore_errors=True)
        own = processed.with_name(f"{processed.name}.{socket.gethostname()}.{os.getpid()}")
        own.mkdir(parents=True, exist_ok=True)
        try:
            found = [(dataset._data, dataset.slices) for dataset in read(own)]
        except BaseException as error:
            shutil.rmtree(own, ignore_errors=True)
            of_the_machine = isinstance(error, MemoryError) or getattr(error, "errno", None) in MACHINE_ERRORS
            if of_the_machine or not isinstance(error, Exception):
                raise
            raise UserError(
                f"the files in {raw} cannot be read ({type(error).__name__}: {error}): they are cut short or damaged; "
                f"take them anew from {address}"
            ) from error
    try:
        own.rename(processed)
    except OSError:  # another process was first
        shutil.rmtree(own)
    return found


def _join(parts: list[tuple[Any, dict[str, Tensor]]], level: str) -> tuple[GraphBatch, dict[str, Tensor]]:
    """The graphs of a train, a val and a test part one after the other, and which are which."""
    data = [part for part, _ in parts]
    counts = [len(slices["x"]) - 1 for _, slices in parts]
    x = torch.cat([part.x for part in data]).float()
    if getattr(data[0], "pos", None) is not None:
        x = torch.cat([x, torch.cat([part.pos for part in data])], dim=1)
    graphs = pack(
        sizes=torch.cat([slices["x"].diff() for _, slices in parts]),
        edge_counts=torch.cat([slices["edge_index"].diff() for _, slices in parts]),
        x=x,
        edge_index=torch.cat([part.edge_index for part in data], dim=1),
        edge_attr=None if data[0].edge_attr is None else torch.cat([part.edge_attr for part in data]),
        y=torch.cat([part.y for part in data]),
        level=level,
    )
    return graphs, dict(zip(SPLITS, torch.arange(sum(counts)).split(counts), strict=True))


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
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} is empty, cut short or damaged ({str(error).splitlines()[0]})") from error


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _broken(raw: Path, name: str, what: str) -> UserError:
    return UserError(f"{raw}: {what}; the files are incomplete or damaged: take them anew from {TU_URL}/{name}.zip")
