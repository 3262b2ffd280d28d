"""Position encodings: eigenvectors of the normalised Laplacian of the graph with its CLS token (paper eq. 23)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from et.graphs.batch import GraphBatch
from et.utils.files import replacing
from et.utils.parallel import parallel_map

# Part of the cache's key: raise it whenever the numbers below would come out differently.
VERSION = 1
# Sums of cubed graph sizes from which there is a progress bar, and from which starting processes pays off.
WORTH_A_BAR, WORTH_PROCESSES = 1e9, 2e10


def laplacian_eigenvectors(edge_index: np.ndarray, num_nodes: int, k: int) -> np.ndarray:
    """The k eigenvectors after the first of I - D^-1/2 A D^-1/2, for the CLS token and then the nodes.

    A is the adjacency matrix with a first row and column of ones for the CLS token (eq. 23). It is made symmetric: an
    edge in one direction counts for both. Repeated edges and self-loops of nodes count once.

    Args:
        edge_index: Node indices below ``num_nodes``, (2, E) integers.
        num_nodes: Number of nodes n >= 0.
        k: Number of eigenvectors. If the graph has too few tokens, columns of zeros follow.

    Returns:
        (n + 1, k) float32. Signs are arbitrary, and so is the basis of a repeated eigenvalue.
    """
    from scipy.linalg import eigh

    n = num_nodes + 1
    adjacency = np.zeros((n, n))
    adjacency[0, :] = adjacency[:, 0] = 1.0
    source, target = edge_index
    adjacency[source + 1, target + 1] = adjacency[target + 1, source + 1] = 1.0
    scale = 1 / np.sqrt(adjacency.sum(1))
    laplacian = np.eye(n) - scale[:, None] * adjacency * scale
    found = np.zeros((n, k), dtype=np.float32)
    last = min(k, n - 1)
    if last > 0:
        found[:, :last] = eigh(laplacian, subset_by_index=[1, last], overwrite_a=True, check_finite=False)[1]
    return found


def with_eigenvectors(graphs: GraphBatch, k: int, cache: Path | None = None, progress: bool = True) -> GraphBatch:
    """``graphs`` with the Laplacian eigenvectors of their tokens as ``pe``.

    Args:
        graphs: The graphs.
        k: Number of eigenvectors.
        cache: Folder of the cache file, whose name is a hash of the structure of the graphs and of k. If None, nothing
            is cached.
        progress: Show a progress bar for large data sets.
    """
    path = None if cache is None else cache / "laplacian" / f"{_structure_hash(graphs)}-k{k}-v{VERSION}.npy"
    if path is not None and path.exists():
        try:
            pe = np.load(path)
        except (OSError, ValueError, EOFError):
            pe = None  # A damaged file is computed anew.
        if pe is not None and pe.shape == (graphs.num_nodes + len(graphs), k):
            return replace(graphs, pe=torch.from_numpy(pe))
    pe = _compute(graphs, k, progress)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as fresh:
            np.save(fresh, pe)
    return replace(graphs, pe=torch.from_numpy(pe))


def flip_signs(pe: Tensor, sizes: Tensor, flips: str = "vectors") -> Tensor:
    """Multiply the eigenvectors by random signs, for training (appendix D.3).

    Args:
        pe: Eigenvectors, (N + G, k).
        sizes: Number of tokens of each graph, (G,).
        flips: ``vectors``: one sign per eigenvector and graph. ``entries``, as in the released code: one sign per token
            position and column, shared by all graphs of the batch.

    Returns:
        The eigenvectors with their new signs, (N + G, k).
    """
    graph_of_token = torch.repeat_interleave(sizes, output_size=len(pe))
    if flips == "vectors":
        rows, count = graph_of_token, len(sizes)
    else:
        starts = sizes.cumsum(0) - sizes
        rows, count = torch.arange(len(pe), device=pe.device) - starts[graph_of_token], int(sizes.max())
    signs = torch.randint(0, 2, (count, pe.shape[1]), device=pe.device, dtype=pe.dtype) * 2 - 1
    return pe * signs[rows]


def _compute(graphs: GraphBatch, k: int, progress: bool) -> np.ndarray:
    ptr, edge_ptr = graphs.ptr.numpy(), graphs.edge_ptr.numpy()
    edge_index, sizes = graphs.edge_index.numpy(), graphs.sizes.numpy()
    pieces = [edge_index[:, edge_ptr[i] : edge_ptr[i + 1]] - ptr[i] for i in range(len(graphs))]
    work = (pieces, sizes.tolist(), [k] * len(graphs))
    effort = float((sizes.astype(float) ** 3).sum())
    return np.concatenate(
        # Processes and not threads, since scipy's eigensolver keeps the interpreter's lock.
        parallel_map(
            laplacian_eigenvectors, *work, what="Laplacian eigenvectors (once; cached)", together=16,
            parallel=effort >= WORTH_PROCESSES, bar=progress and effort > WORTH_A_BAR,
        )
    )  # fmt: skip


def _structure_hash(graphs: GraphBatch) -> str:
    digest = hashlib.sha256()
    for tensor in (graphs.ptr, graphs.edge_ptr, graphs.edge_index):
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:32]
