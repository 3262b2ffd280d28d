"""Sizes and content hashes of the published graph data sets. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

# Graphs in train, val and test, as published (Dwivedi et al. 2020).
PUBLISHED_PARTS = {
    "MNIST": (55_000, 5_000, 10_000),
    "CIFAR10": (45_000, 5_000, 10_000),
    "PATTERN": (10_000, 2_000, 2_000),
    "CLUSTER": (10_000, 1_000, 1_000),
    "ZINC": (220_011, 24_445, 5_000),
    "ZINC12k": (10_000, 1_000, 1_000),
}
# Hashes of contents: of MNIST's digits in any order (et.graphs.synthetic.hash_digits), of graphs, and of a file.
MNIST_SHA256 = (
    "da6370735bf1d490f086dde49c15f2ed0480ad05dc7c70abf5d36bf471d5e312",
    "0c7bc63f656fb2440dc2b5bea4ff3ac8632e305b73ec1dc88141a32d36204fac",
)
DIGITS_SHA256 = "db56f9721715b04bcd32cc52c84f26c55233aaf3b215d4171f1d23f30e33c2db"
ZINC_VARIANT_SHA256 = "49887b782c46c9d30377c2d00d8463388e9f39d7a1954d920feec3bf5bce4127"


@dataclass(frozen=True)
class PublishedTU:
    """A data set of table 2 as published (table 8).

    Attributes:
        graphs: Number of graphs.
        nodes, edges: Mean number of nodes and of undirected edges per graph, with two decimals.
        features: Number of columns of attributes and one-hot labels.
        sha256: :func:`et.graphs.synthetic.hash_graphs` of the graphs, or None if unknown.
    """

    graphs: int
    nodes: float
    edges: float
    features: int
    sha256: str | None = None


PUBLISHED_TU = {
    "MUTAG": PublishedTU(188, 17.93, 19.79, 7, "c8a2c170990d7ad5b28d708825a41cada5a01613fcc41e5fbfe3e118c4097fe5"),
    "ENZYMES": PublishedTU(600, 32.63, 62.14, 21, "6877c1b2f482fcefb1f9484811557f9af32b1f9c8a9b7b078e96b410321aa55f"),
    "PROTEINS": PublishedTU(1113, 39.06, 72.82, 4, "e1a9177efcbb99563ad3a48ef8c0782a894f5e796111cfab232bb79e2ebfa4a2"),
    "DD": PublishedTU(1178, 284.32, 715.66, 89, "c96085fd62c6885f1f7de3b62df0900a6ba4436f488d6ff76178ef05190e314d"),
    "NCI1": PublishedTU(4110, 29.87, 32.30, 37, "b55edaf6e2ceb32a360372c8dbff8c75fa15dd10011529cf5aa10563968e5d64"),
    "NCI109": PublishedTU(4127, 29.68, 32.13, 38, "c6bc20531233a62a02f006c95a4780ad92a781a7a0cc3a93d0ffde3586da6a42"),
    "Mutagenicity": PublishedTU(
        4337, 30.32, 30.77, 14, "7c3fe1842ec1608c949aae95d52a8844f34342ad65a2dae5fd61689c275d401a"
    ),
    "FRANKENSTEIN": PublishedTU(4337, 16.90, 17.88, 780),
}


def standardize_by_default(source: str, name: str | None) -> bool | None:
    """Value of ``data.standardize`` if the configuration has null.

    Returns:
        False for data sets whose published configuration is recorded so. None for the user's own folder in TUDataset's
        format, which :class:`et.graphs.data.GraphData` treats as True.
    """
    return None if source == "tu" and name not in PUBLISHED_TU else False
