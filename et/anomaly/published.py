"""Origin, sizes and content hashes of the published graphs of nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from et.anomaly.graph import NodeGraph, edge_keys, without_repeats


@dataclass(frozen=True)
class Published:
    """A published data set: its file, address and sizes.

    A file with other sizes or contents is recorded as a variant, with a warning.

    Attributes:
        file: File name under ``<data root>/node/``.
        address: Download address.
        nodes: Number of nodes. None if they are not compared.
        edges: Number of distinct undirected edges (table 5). None if they are not compared.
        features: Number of columns. None if they are not compared.
        anomalies: Share of anomalous nodes in percent: of all nodes with two decimals (table 5), or of the labelled
            ones with one decimal (GADBench's table). None if it is not compared.
        of_labelled: Whether ``anomalies`` is the share of the labelled nodes.
        table: Where these sizes are printed.
        unlabelled: Number of nodes without a label, at the start of the file.
        sha256: :meth:`et.anomaly.graph.NodeGraph.sha256` of the published contents, or None if unknown.
        variant: Description, if the data are not a data set of the paper.
    """

    file: str
    address: str
    nodes: int | None = None
    edges: int | None = None
    features: int | None = None
    anomalies: float | None = None
    unlabelled: int = 0
    variant: str = "exact"
    sha256: str | None = None
    of_labelled: bool = False
    table: str = "table 5"

    def differences(self, graph: NodeGraph) -> str:
        """Description of the known differences of ``graph`` from the published one; empty if there are none."""
        if self.nodes not in (None, graph.num_nodes):
            return f"{graph.num_nodes} nodes where {self.table} has {self.nodes}"
        if self.edges is not None:
            keys = np.concatenate([edge_keys(edges, graph.num_nodes) for edges in graph.relations.values()])
            keys.sort()
            found = len(without_repeats(keys)) // 2
            if found != self.edges:
                return f"{found} edges where {self.table} has {self.edges}"
        if self.features not in (None, graph.features.shape[1]):
            return f"{graph.features.shape[1]} features where {self.table} has {self.features}"
        counted = graph.labels[graph.labels >= 0] if self.of_labelled else graph.labels
        anomalies = round(100 * float((counted == 1).double().mean()), 1 if self.of_labelled else 2)
        if self.anomalies not in (None, anomalies):
            return f"{anomalies} % anomalies where {self.table} has {self.anomalies} %"
        return "other contents than the published file" if self.sha256 not in (None, graph.sha256()) else ""


BWGNN_DATA = "https://github.com/squareRoot3/Rethinking-Anomaly-Detection (its README links the folder)"
PUBLISHED = {
    "amazon": Published("Amazon.mat", "https://data.dgl.ai/dataset/FraudAmazon.zip", 11944, 4398392, 25, 6.87, 3305),
    "yelp": Published("YelpChi.mat", "https://data.dgl.ai/dataset/FraudYelp.zip", 45954, 3846979, 32, 14.53),
    "tfinance": Published("tfinance", BWGNN_DATA, 39357, 21222543, 10, 4.58),
    "tsocial": Published("tsocial", BWGNN_DATA, 5781065, 73105508, 10, 3.01),
    "tolokers": Published(
        "tolokers.npz",
        "https://github.com/yandex-research/heterophilous-graphs (data/tolokers.npz)",
        variant="exact (a data set the paper does not have)",
        sha256="59bf621bd32a791d857500d9b3a8937bba9dcb2f17b9dc2e96b290ea60e30341",
    ),
    "amazon_upu": Published(
        "amazon_upu.mat",
        "https://github.com/tzy528/sting",
        variant="Amazon's U-P-U relation and the 10,224 users that have one; no unlabelled block",
        sha256="536dc4670a4e635f863a0658959a59ae4c2e2ea71e4b21b1df961df4935e3991",
    ),
    "yelp_reviewers": Published(
        "yelp_reviewers.mat",
        "https://github.com/tzy528/sting",
        variant="Yelp's R-U-R and R-T-R relations and the 23,831 reviews that share a user",
        sha256="1dd17e6f5f2d44c2bd8ec6aa0856b71ebe44ede8bc3f6e65aea42b5f9c69eee9",
    ),
    "reddit": Published(
        "reddit.pt",
        "https://github.com/pygod-team/data (reddit.pt.zip)",
        variant="exact (a data set the paper does not have)",
        sha256="c9e72d87eabd0d8735f360bf995a0383b50d3a53519706f35face83c9845213c",
    ),
    "tsocial_synthetic": Published(
        "tsocial_synthetic.npz",
        "`python scripts/make_synthetic_graph.py FILE`",
        variant="synthetic, of T-Social's size",
    ),
}
# GADBench's own files of its ten data sets, with masks of its splits: dgl graphs without an ending. Nodes, columns and
# anomalies are those of its table. Edges are not compared: the table counts some graphs once per pair and some twice.
GADBENCH_DATA = "https://github.com/squareRoot3/GADBench (its README links the folder)"
GADBENCH_SIZES = {
    "reddit": (10984, 64, 3.3),
    "weibo": (8405, 400, 10.3),
    "amazon": (11944, 25, 9.5),
    "yelp": (45954, 32, 14.5),
    "tolokers": (11758, 10, 21.8),
    "questions": (48921, 301, 3.0),
    "tfinance": (39357, 10, 4.6),
    "elliptic": (203769, 166, 9.8),
    "dgraphfin": (3700550, 17, 1.3),
    "tsocial": (5781065, 10, 3.0),
}
PUBLISHED |= {
    f"gadbench_{name}": Published(
        f"gadbench/{name}",
        GADBENCH_DATA,
        nodes,
        features=features,
        anomalies=anomalies,
        variant="GADBench's file, contents not checked",
        of_labelled=True,
        table="GADBench's table",
    )
    for name, (nodes, features, anomalies) in GADBENCH_SIZES.items()
}
