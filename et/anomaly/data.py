"""The data of node anomaly detection: one graph, a split of its nodes, and the batches that training sees."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from et.anomaly.aggregates import hops_of, neighbour_features
from et.anomaly.batch import NodeBatch, SubgraphSamples, disjoint_union, induced
from et.anomaly.graph import (
    NodeGraph,
    check_graph,
    components,
    drop_columns,
    make_undirected,
    neighbourhoods,
    reverse_cuthill_mckee_order,
)
from et.anomaly.masks import masked_split, split_masks
from et.anomaly.sources import PUBLISHED, existing_file, graph_path, load_graph
from et.anomaly.splits import Split, few_anomalies, make_split
from et.core import EdgeTopology
from et.core.arguments import check_given, check_sizes
from et.training.sampler import EpochSampler, rank_and_world
from et.utils.errors import UserError
from et.utils.features import piecewise_linear, scale_columns, to_float32


class NodeDataModule(pl.LightningDataModule):
    """A graph whose nodes are benign or anomalous, with a split of its nodes.

    ``fidelity`` says what a neighbour is if ``self_loops`` and ``repeated_edges`` are None.

    ``paper``: the set N_A of "all the nodes connected to node A" of an undirected graph (appendix C.1, eq. 17 and 20).
    A set holds a node once, so an edge of several relations counts once. Table 5 counts edges in this way too (Amazon:
    4,398,392 distinct edges, while its relations hold 4,778,824 together). There are no self-loops: eq. 3 has B != C,
    "1-hop neighbours of the target node" excludes the node itself, and neither Amazon nor Yelp has self-loops. Only the
    Hopfield network moves a node without neighbours.

    ``released``: repeated edges stay, and the merged graph gets a self-loop at every node (graphs of single relations
    do not). Single relations are in the order of their names, as in a dgl graph (Yelp: rsr, rtr, rur; Amazon: upu, usu,
    uvu).

    Args:
        source, root, path, neighbours: See :func:`et.anomaly.sources.load_graph`.
        num_nodes, num_features, num_relations: Counts that the model is built for, compared with the file. If None, the
            file's. Columns that ``neighbour_hops`` and ``encoding_bins`` add are counted in ``num_features``.
        train_ratio, seed, protocol, semi_supervised: See :func:`et.anomaly.splits.make_split`.
        split: ``drawn`` by ``protocol``, or ``masks`` of the file (see :func:`et.anomaly.masks.masked_split`).
        inductive: If True, train on the graph of the training nodes, validate on that of training and validation nodes,
            and test on the whole graph (GADBench's inductive mode).
        drop_features: Indices of the feature columns to leave out. If None, none.
        fidelity: ``paper`` or ``released``.
        merge: If True, merge all relations into one graph (table 1). If False, one graph per relation (table 12).
        self_loops: If True, every node is its own neighbour. If None, as ``fidelity`` has it.
        repeated_edges: If True, repeated edges count with their multiplicity. If None, as ``fidelity`` has it.
        one_way_edges: Treatment of edges without their reverse: see :func:`et.anomaly.graph.make_undirected`.
        standardize: Scale the features by the training nodes (``train``), by all nodes (``all``: their features are
            known to a transductive model, their labels are not), or not at all (``none``).
        scaling: ``moments`` or ``quantiles``, for counts with long tails: see :func:`et.utils.features.scale_columns`.
        neighbour_hops: If not 0, append the means over the neighbours of so many hops and the log numbers of neighbours
            (:func:`et.anomaly.aggregates.neighbour_features`). They are scaled as the features are. A list has a
            number for each relation, in the order of the file.
        encoding_bins: If not 0, append the piecewise linear encoding of all columns, with so many bins
            (:func:`et.utils.features.piecewise_linear`), fitted on the nodes that the scale is fitted on.
        group_by: Name of a relation whose connected components stay in one part, such as the reviews of a user
            (:func:`et.anomaly.splits.grouped_split`). If None, nodes are drawn one by one.
        sample_ratio: Share of the training, validation and test nodes in the subgraph that an epoch trains on (appendix
            C.2: 5 %). If None, it trains on the whole graph.
        subgraphs: Number of such subgraphs per step, over all processes.

    Raises:
        UserError: The data or these arguments are wrong (from :meth:`setup`).
    """

    def __init__(
        self,
        source: str,
        root: str | Path,
        num_nodes: int | None = None,
        num_features: int | None = None,
        num_relations: int | None = 1,
        path: str | Path | None = None,
        neighbours: int = 10,
        train_ratio: float | str = 0.4,
        seed: int = 0,
        protocol: Literal["held_out", "released", "gadbench"] = "held_out",
        fidelity: Literal["paper", "released"] = "paper",
        merge: bool = True,
        self_loops: bool | None = None,
        repeated_edges: bool | None = None,
        one_way_edges: Literal["error", "mirror", "keep"] = "error",
        standardize: Literal["none", "train", "all"] = "none",
        scaling: Literal["moments", "quantiles"] = "moments",
        sample_ratio: float | None = None,
        subgraphs: int = 1,
        split: Literal["drawn", "masks"] = "drawn",
        semi_supervised: bool = False,
        inductive: bool = False,
        drop_features: Sequence[int] | None = None,
        neighbour_hops: int | Sequence[int] = 0,
        encoding_bins: int = 0,
        group_by: str | None = None,
    ):
        super().__init__()
        check_sizes(neighbours=neighbours, subgraphs=subgraphs)
        by_relation = isinstance(neighbour_hops, Sequence) and not isinstance(neighbour_hops, str) and neighbour_hops
        for hops in neighbour_hops if by_relation else [neighbour_hops]:
            check_sizes(minimum=0, neighbour_hops=hops)
        check_sizes(minimum=0, encoding_bins=encoding_bins)
        check_given(num_nodes=num_nodes, num_features=num_features, num_relations=num_relations)
        self.released = released = fidelity == "released"
        self.source, self.root, self.path, self.neighbours = source, root, path, neighbours
        self.expected = {"num_nodes": num_nodes, "num_features": num_features, "num_relations": num_relations}
        self.train_ratio, self.seed, self.protocol, self.merge = train_ratio, seed, protocol, merge
        self.self_loops = (released and merge) if self_loops is None else self_loops
        self.repeated_edges = released if repeated_edges is None else repeated_edges
        self.one_way_edges, self.sample_ratio, self.subgraphs = one_way_edges, sample_ratio, subgraphs
        self.standardize, self.scaling = standardize, scaling
        self.neighbour_hops = list(neighbour_hops) if by_relation else neighbour_hops
        self.encoding_bins = encoding_bins
        self.split, self.semi_supervised, self.inductive = split, semi_supervised, inductive
        self.drop_features, self.group_by = list(drop_features or ()), group_by
        self.whole: NodeBatch | None = None
        self._moved: NodeBatch | None = None  # the same on the device where it is trained

    @staticmethod
    def location(config: Mapping[str, Any]) -> str | Path:
        """The file that a user's own graph is in, or the folder of files saved as published graphs."""
        return config.get("path") or Path(config["root"]) / "node"

    def missing(self) -> list[str]:
        """What ``setup`` would have to download or ask for; reads and fetches nothing."""
        folder, about = Path(self.root) / "node", PUBLISHED.get(self.source)
        if about is None or existing_file(self.source, folder):
            return []
        return [f"{folder / about.file} (from {about.address})"]

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the graph; done once."""
        if self.whole is not None:
            return
        if self.standardize not in ("none", "train", "all"):
            raise UserError(f"data.standardize must be none, train or all, not {self.standardize!r}")
        if self.scaling not in ("moments", "quantiles"):
            raise UserError(f"data.scaling must be moments or quantiles, not {self.scaling!r}")
        if self.sample_ratio is not None and not 0 < self.sample_ratio <= 1:
            raise UserError(f"data.sample_ratio must lie between 0 and 1, not be {self.sample_ratio}")
        if self.inductive and self.sample_ratio is not None:
            raise UserError("data.inductive=true trains on all training nodes at once: set data.sample_ratio=null")
        if self.inductive and self.neighbour_hops:
            raise UserError("data.neighbour_hops takes means over the whole graph: set data.inductive=false")
        if self.inductive and self.standardize == "all":
            raise UserError(
                "data.standardize=all scales by test nodes, which data.inductive=true hides: set it to train"
            )
        if self.inductive and self.protocol == "released":
            raise UserError(
                "protocol=released scores the training step's graph, which data.inductive=true keeps small: "
                "set protocol=held_out"
            )
        graph = self._read()
        split = self._make_split(graph)
        edges = neighbourhoods(graph, self.merge, self.self_loops, self.repeated_edges)
        self._description, self._split = self._describe(graph, split, edges), split
        for warning in self._description.get("warnings", ()):
            warnings.warn(warning, stacklevel=2)
        anomalous = int((graph.labels[split.train] == 1).sum())
        nodes = reverse_cuthill_mckee_order(edges.values(), graph.num_nodes)
        place = torch.empty_like(nodes)
        place[nodes] = torch.arange(graph.num_nodes)
        topologies = tuple(EdgeTopology(place[edge_index], graph.num_nodes) for edge_index in edges.values())
        features = graph.features
        if self.neighbour_hops:
            features = neighbour_features(features[nodes], topologies, self._hops(edges), degrees=True)[place]
        self.whole = NodeBatch(
            features=self._features(features, split, graph.name)[nodes],
            labels=graph.labels[nodes],
            topologies=topologies,
            train=place[torch.from_numpy(split.train)],
            val=place[torch.from_numpy(split.val)],
            test=place[torch.from_numpy(split.test)],
            nodes=nodes,
            anomaly_weight=(len(split.train) - anomalous) / anomalous,
        )
        trainer = self.trainer
        if stage == "fit" and trainer is not None and trainer.is_global_zero and not trainer.fast_dev_run:
            split.save(Path(trainer.default_root_dir) / "split.npz", graph.num_nodes)

    def counts(self) -> dict[str, int]:
        """Numbers of nodes, features and relations of the data.

        Raises:
            UserError: The file is missing or damaged.
        """
        return self._counts_of(self._load())

    def _load(self) -> NodeGraph:
        graph = load_graph(self.source, self.root, self.path, self.neighbours)
        check_graph(graph)
        return drop_columns(graph, self.drop_features)

    def _make_split(self, graph: NodeGraph) -> Split:
        """The parts, by masks or drawn."""
        labels = graph.labels.numpy()
        if self.split == "drawn":
            groups = None if self.group_by is None else components(graph, self.group_by)
            drawn = (self.train_ratio, self.seed, self.protocol, self.source, self.semi_supervised, groups)
            return make_split(labels, *drawn)
        if self.split != "masks":
            raise UserError(f"data.split must be drawn or masks, not {self.split!r}")
        if self.group_by is not None:
            raise UserError("data.group_by draws a split, and data.split=masks takes that of the file: leave one out")
        path = graph_path(self.source, self.root, self.path)
        if path is None:
            raise UserError(f"{self.source} is not a file and has no masks: set data.split=drawn")
        return masked_split(path, labels, self.seed, self.semi_supervised)

    def _unused_masks(self) -> list[str]:
        """A warning if the user's own file has masks of a split that a drawn one does not take."""
        if self.split == "masks" or self.source != "file":
            return []
        masks = split_masks(Path(self.path))
        return [f"{self.path} has {', '.join(masks)}, unused: data.split=masks takes its parts"] if masks else []

    def _uneven_groups(self, split: Split, labelled: Tensor) -> list[str]:
        """A warning if the share of training nodes is far from the share of groups that was asked for."""
        share = len(split.train) / len(labelled)
        if self.group_by is None or abs(share - self.train_ratio) <= 0.1:
            return []
        return [
            f"{share:.0%} of the nodes are for training, with data.train_ratio={self.train_ratio}: that is a share of "
            f"the groups of {self.group_by}, whose sizes differ"
        ]

    def _counts_of(self, graph: NodeGraph) -> dict[str, int]:
        num_features, num_relations = graph.features.shape[1], 1 if self.merge else len(graph.relations)
        if self.neighbour_hops:
            num_features = num_features * (1 + sum(hops_of(self.neighbour_hops, num_relations))) + num_relations
        num_features *= 1 + self.encoding_bins
        return {"num_nodes": graph.num_nodes, "num_features": num_features, "num_relations": num_relations}

    def _hops(self, relations: Iterable[str]) -> list[int]:
        """Number of hops in each of ``relations``, which need not have the order of the file."""
        if self.merge:
            return hops_of(self.neighbour_hops, 1)
        hops = dict(zip(self._names, hops_of(self.neighbour_hops, len(self._names)), strict=True))
        return [hops[name] for name in relations]

    def _read(self) -> NodeGraph:
        graph = self._load()
        self._names = list(graph.relations)
        found = self._counts_of(graph)
        wrong = {key: count for key, count in found.items() if self.expected[key] not in (None, count)}
        if wrong:
            settings = " ".join(f"data.{key}={count}" for key, count in wrong.items())
            says = ", ".join(f"{key}={self.expected[key]}" for key in wrong)
            raise UserError(f"the configuration does not fit the graph {graph.name!r}, it says {says}: set {settings}")
        # The order in which the model meets the relations: results of the released one depend on it.
        by_name = self.released and not self.merge
        relations = {
            name: make_undirected(edge_index, graph.num_nodes, name, self.one_way_edges)
            for name, edge_index in (sorted(graph.relations.items()) if by_name else graph.relations.items())
        }
        return replace(graph, relations=relations)

    def _describe(self, graph: NodeGraph, split: Split, edges: dict[str, Tensor]) -> dict[str, Any]:
        labelled = graph.labels[graph.labels >= 0]
        found = few_anomalies(graph.labels.numpy(), split) + self._unused_masks() + self._uneven_groups(split, labelled)
        return {
            **({"warnings": found} if found else {}),
            "name": graph.name,
            "variant": graph.variant,
            "sha256": self._data_sha256(graph, split),
            "num_nodes": graph.num_nodes,
            "num_features": graph.features.shape[1],
            "directed_edges": {name: edge_index.shape[1] for name, edge_index in edges.items()},
            "labelled_nodes": len(labelled),
            "anomaly_ratio": round(float((labelled == 1).float().mean()), 6),
            "self_loops": self.self_loops,
            "repeated_edges": self.repeated_edges,
            "standardize": self.standardize if self.standardize == "none" else f"{self.scaling}, {self.standardize}",
            "train_ratio": self._train_share(split, len(labelled)),
            **({"split": "masks of the file"} if self.split == "masks" else {}),
            **({"semi_supervised": True} if self.semi_supervised else {}),
            **({"inductive": True} if self.inductive else {}),
            **({"group_by": self.group_by} if self.group_by is not None else {}),
            **({"dropped_features": self.drop_features} if self.drop_features else {}),
            **({"neighbour_hops": self.neighbour_hops} if self.neighbour_hops else {}),
            **({"encoding_bins": self.encoding_bins} if self.encoding_bins else {}),
            "train_nodes": len(split.train),
            "val_nodes": len(split.val),
            "test_nodes": len(split.test),
            "split_sha256": split.sha256(graph.num_nodes),
        }

    def _features(self, features: Tensor, split: Split, name: str) -> Tensor:
        """Features scaled and encoded, in float32."""
        known = torch.arange(len(features)) if self.standardize == "all" else torch.from_numpy(split.train)
        if self.standardize != "none":
            features = scale_columns(features, features[known], self.scaling)
        if self.encoding_bins:
            encoded = piecewise_linear(features, features[known], self.encoding_bins)
            features = torch.cat([features, encoded.to(features)], dim=1)
        return to_float32(features, name)

    def _data_sha256(self, graph: NodeGraph, split: Split) -> str:
        """Hash of the graph; with ``split=masks`` of the parts too, which then are part of the data."""
        if self.split == "drawn":
            return graph.sha256()
        return hashlib.sha256((graph.sha256() + split.sha256(graph.num_nodes)).encode()).hexdigest()

    def _train_share(self, split: Split, labelled: int) -> float:
        """``train_ratio`` if it made the split, else the share of training nodes that the split has."""
        asked = self.split == "drawn" and not self.semi_supervised and self.train_ratio != "published"
        asked = asked and self.group_by is None
        return self.train_ratio if asked else round(len(split.train) / labelled, 6)

    def parts(self) -> Tensor:
        """Part of each node in the order of the file, (N,) uint8: 0 none, 1 train, 2 validation, 3 test."""
        return torch.from_numpy(self._split.parts(len(self.whole.nodes)))

    def describe(self) -> dict[str, Any]:
        """What the data are, for the run's record; after ``setup``."""
        return self._description

    def train_dataloader(self) -> DataLoader:
        _, world = rank_and_world()
        if world > 1 and (self.sample_ratio is None or self.subgraphs % world or self.protocol == "released"):
            raise UserError(
                f"{world} processes share out the subgraphs of a step: set data.sample_ratio, and +data.subgraphs to a "
                "multiple of them, under protocol=held_out. A step on one graph is one process's: trainer.devices=1"
            )
        if self.sample_ratio is None:
            whole, nothing = self.whole, self.whole.train[:0]
            return whole_graph_loader(induced(whole, whole.train, nothing, nothing) if self.inductive else whole)
        samples = SubgraphSamples(self.whole, self.sample_ratio, self.seed, self.subgraphs)
        return DataLoader(
            samples, batch_size=self.subgraphs // world, sampler=EpochSampler(len(samples)), collate_fn=disjoint_union,
            generator=torch.Generator(),
        )  # fmt: skip

    def val_dataloader(self) -> DataLoader:
        whole = self.whole
        return whole_graph_loader(induced(whole, whole.train, whole.val, whole.test[:0]) if self.inductive else whole)

    def test_dataloader(self) -> DataLoader:
        return whole_graph_loader(self.whole)

    def predict_dataloader(self) -> DataLoader:
        return whole_graph_loader(self.whole)

    def transfer_batch_to_device(self, batch: NodeBatch, device: torch.device, dataloader_idx: int) -> NodeBatch:
        """Move a batch; the whole graph is moved once and then stays there, with its sorted edges."""
        if batch.features.device == device:
            return batch
        if batch is not self.whole:
            return batch.to(device)
        if self._moved is None or self._moved.features.device != device:
            with torch.inference_mode(False):  # a validation may come first, and training has to work on it after that
                self._moved = batch.to(device)
        return self._moved

    def teardown(self, stage: str) -> None:
        self._moved = None


def whole_graph_loader(batch: NodeBatch) -> DataLoader:
    """One batch an epoch: everything.

    Loaders here have a generator of their own: an iterator draws one number when it is made, before or after the
    epoch is seeded depending on whether the run was resumed, and dropout must not notice.
    """
    return DataLoader([batch], batch_size=None, generator=torch.Generator())
