"""Make a synthetic graph with planted anomalies, by default of T-Social's size (table 5), in bounded memory.

    python scripts/make_synthetic_graph.py data/node/tsocial_synthetic.npz                  # T-Social's size
    python scripts/make_synthetic_graph.py graph.npz --nodes 20000 --edges 200000 --seed 1  # any size
    python scripts/make_synthetic_graph.py graph                # a folder of .npy, for np.load(mmap_mode="r")

Arrays (keys of the .npz, or files of the folder), those of the heterophilous-graphs collection:

    node_features  (N, F) float32   standard normal; anomalies shifted and wider in the first half of the features
    node_labels    (N,)   int8      1 anomalous, 0 benign
    edges          (M, 2) int32     each undirected edge once, smaller node first, sorted; no self-loop, no repetition

Degrees have a heavy tail: endpoints are drawn with probability proportional to rank^-tail (expected-degree model of
Chung and Lu), the ranks dealt out to the nodes at random. An edge that starts at an anomaly ends, with probability
``affinity``, at another anomaly instead of at anybody. The same arguments give the same file. Edges take about 25 bytes
each of memory while they are made; nodes are written a block at a time.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

T_SOCIAL = {"nodes": 5_781_065, "edges": 73_105_508, "features": 10, "anomaly_ratio": 0.0301}
BLOCK = 1 << 20
LABELS, FEATURES, EDGES = range(3)  # one stream of random numbers for each
Write = Callable[[str, tuple[int, ...], type, Iterable[np.ndarray]], None]


# ---------------------------------------------------------------------------------------------------------- the model


def make_labels(nodes: int, anomaly_ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int32 node of each rank of degree, and (N,) int8 labels with exactly round(ratio N) anomalies."""
    rng = np.random.default_rng([seed, LABELS])
    node_of_rank = rng.permutation(nodes).astype(np.int32)
    labels = np.zeros(nodes, np.int8)
    labels[rng.choice(nodes, round(anomaly_ratio * nodes), replace=False)] = 1
    return node_of_rank, labels


def feature_blocks(labels: np.ndarray, features: int, shift: float, seed: int) -> Iterator[np.ndarray]:
    """Features a block of nodes at a time, (n, F) float32."""
    half = (features + 1) // 2
    for number, first in enumerate(range(0, len(labels), BLOCK)):
        anomalous = labels[first : first + BLOCK] == 1
        block = np.random.default_rng([seed, FEATURES, number]).standard_normal((len(anomalous), features), np.float32)
        block[anomalous, :half] = block[anomalous, :half] * np.float32(1 + shift / 2) + np.float32(shift)
        yield block


def heavy_tailed(rng: np.random.Generator, size: int, count: int, tail: float) -> np.ndarray:
    """``size`` ranks 0 .. count - 1, drawn with probability about proportional to (rank + 1)^-tail."""
    return np.minimum((count * rng.random(size) ** (1 / (1 - tail))).astype(np.int64), count - 1)


def draw_edges(
    rng: np.random.Generator, size: int, node_of_rank: np.ndarray, labels: np.ndarray, anomalies: np.ndarray,
    tail: float, affinity: float,
) -> np.ndarray:  # fmt: skip
    """At most ``size`` edges as numbers smaller * N + larger; self-loops are left out, repetitions not."""
    nodes = len(labels)
    start = node_of_rank[heavy_tailed(rng, size, nodes, tail)]
    end = node_of_rank[heavy_tailed(rng, size, nodes, tail)]
    if len(anomalies):
        among_anomalies = (labels[start] == 1) & (rng.random(size) < affinity)
        end[among_anomalies] = anomalies[heavy_tailed(rng, int(among_anomalies.sum()), len(anomalies), tail)]
    proper = start != end
    start, end = start[proper], end[proper]
    return np.minimum(start, end) * np.int64(nodes) + np.maximum(start, end)


def make_edges(
    edges: int, node_of_rank: np.ndarray, labels: np.ndarray, tail: float, affinity: float, seed: int
) -> np.ndarray:
    """Exactly ``edges`` different edges as sorted numbers smaller * N + larger, (M,) int64."""
    anomalies = node_of_rank[labels[node_of_rank] == 1]  # by falling degree
    keys, count, number = np.empty(edges, np.int64), 0, 0
    while count < edges:
        while count < edges:
            rng = np.random.default_rng([seed, EDGES, number])
            drawn = draw_edges(rng, min(BLOCK, edges - count), node_of_rank, labels, anomalies, tail, affinity)
            keys[count : count + len(drawn)] = drawn
            count, number = count + len(drawn), number + 1
        keys.sort()
        different = np.concatenate(([True], keys[1:] != keys[:-1]))
        count = int(different.sum())
        keys[:count] = keys[different]  # the places of repetitions are drawn again
    return keys


def edge_blocks(keys: np.ndarray, nodes: int) -> Iterator[np.ndarray]:
    """Edges a block at a time, (m, 2) int32."""
    for first in range(0, len(keys), BLOCK):
        yield np.stack(np.divmod(keys[first : first + BLOCK], nodes), axis=1).astype(np.int32)


# ------------------------------------------------------------------------------------------------------------- output


@contextmanager
def array_writer(path: Path) -> Iterator[Write]:
    """A function that writes one array after the other into the .npz or folder ``path``.

    Files appear under their names only once they are whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        partial = path.with_name(path.name + ".partial")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:

            def write(name: str, *array) -> None:
                # A ZipInfo without a date: the same arguments give the same bytes.
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                    write_blocks(file, *array)

            yield write
        partial.replace(path)
    else:
        path.mkdir(exist_ok=True)

        def write(name: str, *array) -> None:
            partial = path / f"{name}.npy.partial"
            with partial.open("wb") as file:
                write_blocks(file, *array)
            partial.replace(path / f"{name}.npy")

        yield write


def write_blocks(file: BinaryIO, shape: tuple[int, ...], dtype: type, blocks: Iterable[np.ndarray]) -> None:
    """Write an array in numpy's format, a block of its rows at a time."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype=dtype).tobytes())


def make_graph(
    path: Path, *, nodes: int, edges: int, features: int, anomaly_ratio: float, tail: float, affinity: float,
    shift: float, seed: int,
) -> None:  # fmt: skip
    """Write the graph (see the module's text).

    Raises:
        ValueError: a number out of its range, or more edges than can be drawn without repetition.
    """
    if nodes < 2 or nodes > 2**31 - 1 or features < 1:
        raise ValueError(f"a graph needs 2 to {2**31 - 1:,} nodes and at least one feature, not {nodes} and {features}")
    if not (0 <= anomaly_ratio <= 1 and 0 <= affinity <= 1 and 0 <= tail < 1):
        raise ValueError("anomaly ratio and affinity lie between 0 and 1, tail from 0 to below 1")
    if not 0 <= edges <= nodes * (nodes - 1) // 8:
        raise ValueError(
            f"{nodes:,} nodes take at most {nodes * (nodes - 1) // 8:,} edges here (a quarter of all pairs)"
        )
    node_of_rank, labels = make_labels(nodes, anomaly_ratio, seed)
    keys = make_edges(edges, node_of_rank, labels, tail, affinity, seed)
    with array_writer(path) as write:
        write("node_features", (nodes, features), np.float32, feature_blocks(labels, features, shift, seed))
        write("node_labels", (nodes,), np.int8, [labels])
        write("edges", (edges, 2), np.int32, edge_blocks(keys, nodes))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="NAME.npz, or a folder")
    parser.add_argument("--nodes", type=int, default=T_SOCIAL["nodes"])
    parser.add_argument("--edges", type=int, default=T_SOCIAL["edges"], help="undirected edges")
    parser.add_argument("--features", type=int, default=T_SOCIAL["features"])
    parser.add_argument("--anomaly-ratio", type=float, default=T_SOCIAL["anomaly_ratio"])
    parser.add_argument(
        "--tail", type=float, default=0.5, help="0: all nodes alike; degrees fall as degree^-(1+1/tail)"
    )
    parser.add_argument("--affinity", type=float, default=0.3, help="how often an anomaly's edge ends at an anomaly")
    parser.add_argument("--shift", type=float, default=0.3, help="of anomalies' features, in standard deviations")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(arguments))
    try:
        make_graph(options.pop("path"), **options)
    except ValueError as error:
        sys.exit(f"make_synthetic_graph.py: {error}")


if __name__ == "__main__":
    main()
