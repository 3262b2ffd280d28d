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
        nodes, edges: Number of nodes and of distinct undirected edges (table 5). None if the paper does not use the
            data.
        features, anomalies: Number of columns, and share of anomalous nodes in percent with two decimals (table 5).
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

    def differences(self, graph: NodeGraph) -> str:
        """Description of the known differences of ``graph`` from the published one; empty if there are none."""
        if self.nodes is not None:
            keys = np.concatenate([edge_keys(edges, graph.num_nodes) for edges in graph.relations.values()])
            keys.sort()
            found = (graph.num_nodes, len(without_repeats(keys)) // 2)
            if found != (self.nodes, self.edges):
                return f"{found[0]} nodes and {found[1]} edges where table 5 has {self.nodes} and {self.edges}"
        if self.features is not None and graph.features.shape[1] != self.features:
            return f"{graph.features.shape[1]} features where the published data set has {self.features}"
        anomalies = round(100 * float((graph.labels == 1).double().mean()), 2)
        if self.anomalies is not None and anomalies != self.anomalies:
            return f"{anomalies} % anomalies where table 5 has {self.anomalies} %"
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
# GADBench's own files of its ten data sets, with masks of its splits: dgl graphs without an ending.
GADBENCH_DATA = "https://github.com/squareRoot3/GADBench (its README links the folder)"
GADBENCH_SETS = (
    "reddit", "weibo", "amazon", "yelp", "tolokers", "questions", "tfinance", "elliptic", "dgraphfin", "tsocial",
)  # fmt: skip
PUBLISHED |= {
    f"gadbench_{name}": Published(f"gadbench/{name}", GADBENCH_DATA, variant="GADBench's file")
    for name in GADBENCH_SETS
}
