"""Readers of graphs of nodes: published files, the user's own file, and a data set that ships with scikit-learn.

No reader executes anything in a file: .npz without pickles, .pt with weights_only, dgl's graph files are plain arrays.
"""

from __future__ import annotations

import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from et.anomaly.graph import UNLABELLED, NodeGraph, check_graph
from et.anomaly.published import PUBLISHED
from et.core.csr import is_integer
from et.runs.record import COUNTS_ONLY, USER_DATA
from et.utils.errors import UserError
from et.utils.features import as_features, as_tensor
from et.utils.pyg_file import load_pyg

SOURCES = (*PUBLISHED, "breast_cancer", "file")


def load_graph(source: str, root: str | Path, path: str | Path | None = None, neighbours: int = 10) -> NodeGraph:
    """Read one graph.

    Args:
        source: One of :data:`SOURCES`.
        root: The data root; published files are in ``<root>/node/``.
        path: The file of source ``file``: .npz, .mat, .pt or .pth (see the readers for their keys).
        neighbours: k of the kNN graph of ``breast_cancer``.

    Raises:
        UserError: The source is unknown, or the file is missing (the message says where to get it), damaged or lacks a
            key.
    """
    if source == "breast_cancer":
        return breast_cancer(neighbours)
    if source == "file":
        if path is None:
            raise UserError("data.path names the graph file (.npz, .mat, .pt): set it")
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no file {path}: set data.path to a .npz, .mat or .pt graph file")
        return NodeGraph(path.stem, *read_graph_file(path), variant=USER_DATA)
    if source not in PUBLISHED:
        raise UserError(f"data.source must be one of {', '.join(SOURCES)}, not {source!r}")
    return published_graph(source, Path(root) / "node")


def graph_path(source: str, root: str | Path, path: str | Path | None = None) -> Path | None:
    """The file that :func:`load_graph` reads; None for a source that ships with a library."""
    if source == "breast_cancer":
        return None
    return Path(path) if source == "file" else find_or_download(source, Path(root) / "node")


def published_graph(name: str, folder: Path) -> NodeGraph:
    """Read a data set of :data:`PUBLISHED` and compare it with the published sizes and hash."""
    about = PUBLISHED[name]
    path = find_or_download(name, folder)
    read = read_dgl if name in ("tfinance", "tsocial") or name.startswith("gadbench_") else read_graph_file
    features, labels, relations = read(path)
    if about.unlabelled and len(labels) == about.nodes:
        labels = labels.clone()
        labels[: about.unlabelled] = UNLABELLED
    graph = NodeGraph(name, features, labels, relations, about.variant)
    check_graph(graph)  # before anything is counted along its edges
    differences = about.differences(graph)
    if differences:
        warnings.warn(f"{path} is not the published data set {name!r}: {differences}", stacklevel=2)
        return replace(graph, variant=f"{USER_DATA} saved as {about.file}: {differences}")
    if about.edges is not None:  # no hash of it is known
        return replace(graph, variant=COUNTS_ONLY)
    return graph


def existing_file(name: str, folder: Path) -> Path | None:
    """Path of a published data set's file in ``folder`` or below it, where dgl puts its downloads; None if there is
    none.
    """
    file = PUBLISHED[name].file
    below = [path for path in sorted(folder.glob(f"*/**/{file}")) if folder / "gadbench" not in path.parents]
    return next((path for path in (folder / file, *below) if path.is_file()), None)


def find_or_download(name: str, folder: Path) -> Path:
    """File of a published data set; Amazon and Yelp are downloaded by dgl if it is installed.

    Raises:
        UserError: The file does not exist and cannot be downloaded.
    """
    about = PUBLISHED[name]
    path = existing_file(name, folder)
    if path is not None:
        return path
    reason = "it cannot be fetched automatically"
    if name in ("amazon", "yelp"):
        try:
            from dgl.data import FraudAmazonDataset, FraudYelpDataset

            with redirect_stdout(StringIO()):  # dgl prints each of its attempts
                (FraudAmazonDataset if name == "amazon" else FraudYelpDataset)(raw_dir=str(folder), verbose=False)
        except ImportError:
            reason = "dgl, which could fetch it, is not installed"
        except Exception as error:  # dgl reports a failed download in many ways
            reason = f"dgl could not fetch it ({type(error).__name__}: is there a network?)"
        path = existing_file(name, folder)
        if path is not None:
            return path
    raise UserError(
        f"{name} needs the file {about.file} in {folder}/, and {reason}. Get it from {about.address} and put it there "
        "(paths.data or ET_DATA_DIR sets the data root)"
    )


Parts = tuple[Tensor, Tensor, dict[str, Tensor]]  # features, labels, relations


def read_graph_file(path: Path) -> Parts:
    """Read a .npz, .mat, .pt or .pth file.

    Raises:
        UserError: The file has another suffix, is damaged, lacks a key, or would have to execute code to be read.
    """
    readers = {".npz": read_npz, ".mat": read_mat, ".pt": read_pyg, ".pth": read_pyg}
    if path.suffix not in readers:
        raise UserError(f"{path} should end in {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except KeyError as error:
        raise UserError(
            f"{path} lacks the key {error}; {(readers[path.suffix].__doc__ or '').splitlines()[0]}"
        ) from error
    except UserError:
        raise
    except NotImplementedError as error:  # scipy's about MATLAB's newer files, which are HDF5
        raise UserError(f"{path} is a .mat file of version 7.3, which is not read: save it with -v7") from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {reason}): is it whole?") from error


def read_npz(path: Path) -> Parts:
    """Keys: features (N, F), labels (N,), edge_index (2, E) or one edge_index_<relation> (2, E) each.

    Files of the heterophilous-graphs collection (node_features, node_labels, and edges (E, 2), each edge once) are read
    too; the reverse of each edge is added.
    """
    with np.load(path, allow_pickle=False) as file:
        if "node_features" in file:
            once = edges_of(file["edges"]).T
            relations = {"edges": torch.cat([once, once.flip(0)], dim=1)}
            return features_of(file["node_features"]), labels_of(file["node_labels"]), relations
        relations = {key: file[key] for key in file.files if key == "edge_index" or key.startswith("edge_index_")}
        if not relations:
            raise KeyError("edge_index")
        relations = {key.removeprefix("edge_index_"): edges_of(edges) for key, edges in relations.items()}
        return features_of(file["features"]), labels_of(file["labels"]), relations


def read_mat(path: Path) -> Parts:
    """Keys: features (N, F) sparse or dense, label (1, N), and a sparse adjacency matrix net_<relation> (N, N) each.

    Without net_<relation>, the matrix ``homo`` is the only relation.
    """
    from scipy.io import loadmat
    from scipy.sparse import coo_array

    file = loadmat(path)
    names = [key for key in file if key.startswith("net_")] or ["homo"]
    relations = {}
    for name in names:
        matrix = coo_array(file[name])
        pairs = np.stack([matrix.coords[0], matrix.coords[1]])[:, matrix.data != 0]
        relations[name.removeprefix("net_")] = torch.from_numpy(pairs.astype(np.int64))
    features = file["features"]
    features = features.toarray() if hasattr(features, "toarray") else features
    return features_of(features), labels_of(file["label"].squeeze()), relations


def read_pyg(path: Path) -> Parts:
    """A torch_geometric Data, or a dictionary, with x (N, F), y (N,) and edge_index (2, E), saved by torch.save.

    Only tensors and PyG's own containers are unpickled (weights_only).
    """
    data = load_pyg(path)
    for key in ("x", "y", "edge_index"):
        if key not in data or data[key] is None:
            raise KeyError(key)
    unused = [key for key in ("edge_attr", "edge_weight") if key in data and data[key] is not None]
    if unused:
        warnings.warn(f"{path} has {' and '.join(unused)}, which no model here reads", stacklevel=2)
    return features_of(data["x"]), labels_of(data["y"]), {"edge_index": edges_of(data["edge_index"])}


def read_dgl(path: Path) -> Parts:
    """A graph saved by dgl.save_graphs, with node data feature (N, F) and label (N,) or one-hot (N, 2)."""
    try:
        from dgl.data.utils import load_graphs
    except ImportError as error:
        raise UserError(
            f"{path} is a dgl graph: it needs dgl (pip install dgl==1.1.3), which is not installed"
        ) from error
    try:
        graphs, _ = load_graphs(str(path))
    except Exception as error:
        raise UserError(f"{path} is not a dgl graph file ({str(error).splitlines()[0][:200]}): is it whole?") from error
    graph = graphs[0]
    for key in ("feature", "label"):
        if key not in graph.ndata:
            raise UserError(f"{path} lacks the node data {key!r}; it has {', '.join(graph.ndata) or 'none'}")
    labels = labels_of(graph.ndata["label"])
    if "mark" in graph.ndata:  # GADBench's mark of the labelled nodes; the others have label 0
        labels = torch.where(graph.ndata["mark"].bool(), labels, UNLABELLED)
    relations = {relation: torch.stack(graph.edges(etype=relation)) for relation in graph.etypes}
    return features_of(graph.ndata["feature"]), labels, relations


def breast_cancer(neighbours: int) -> NodeGraph:
    """scikit-learn's 569 tumours as nodes; malignant ones (212) are the anomalies.

    An edge joins two tumours if one is among the ``neighbours`` nearest of the other in the 30 standardised
    measurements. The graph is built from measurements alone.
    """
    from sklearn.datasets import load_breast_cancer
    from sklearn.neighbors import kneighbors_graph
    from sklearn.preprocessing import StandardScaler

    measurements, benign = load_breast_cancer(return_X_y=True)
    if neighbours >= len(benign):
        raise UserError(f"data.neighbours={neighbours}: there are {len(benign)} nodes, so at most {len(benign) - 1}")
    nearest = kneighbors_graph(StandardScaler().fit_transform(measurements), neighbours)
    edges = np.stack(nearest.maximum(nearest.T).nonzero())
    relations = {"nearest": torch.from_numpy(edges.astype(np.int64))}
    return NodeGraph("breast_cancer", features_of(measurements), labels_of(1 - benign), relations, variant="embedded")


def features_of(array: np.ndarray | Tensor) -> Tensor:
    """(N, F) float32, or float64 if float32 would lose their variation (:func:`et.utils.features.as_features`)."""
    return as_features(array)


def edges_of(array: np.ndarray | Tensor) -> Tensor:
    """(2, E) int32 or int64; other integer types, which torch cannot index with, become int64."""
    edges = as_tensor(array)
    return edges.long() if is_integer(edges) and edges.dtype not in (torch.int32, torch.int64) else edges


def labels_of(array: np.ndarray | Tensor) -> Tensor:
    """(N,) int64, from (N,), or one-hot from (N, 2). Labels other than 0, 1 and -1 are left to
    :func:`et.anomaly.graph.check_graph`.

    Raises:
        UserError: A label is a text, complex or not whole.
    """
    first = np.empty(0) if isinstance(array, Tensor) else np.ravel(array)[:1]
    if len(first) and isinstance(first[0], str | bytes):
        raise UserError(f"a label is 0, 1 or -1 (unlabelled), but the file has the text '{first.astype(str)[0]}'")
    labels = as_tensor(array)
    if labels.dim() == 2 and labels.shape[1] == 2 and len(labels) > 2:
        is_one, is_zero = labels == 1, labels == 0
        if bool((is_one ^ is_one.flip(1)).all() and (is_one | is_zero).all()):  # one-hot
            labels = is_one[:, 1]
    labels = labels.reshape(-1)
    if labels.is_complex():
        raise UserError("a label is 0, 1 or -1 (unlabelled), but the file has complex numbers")
    if labels.is_floating_point():
        whole = labels == labels.round()
        if not whole.all():
            raise UserError(f"a label is 0, 1 or -1 (unlabelled), but the file has {float(labels[~whole][0])}")
    return labels.to(torch.int64)
