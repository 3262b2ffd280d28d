"""Batches of graphs for training, validation and test (LightningDataModule)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from et.core.arguments import check_given, check_sizes
from et.graphs import sources, synthetic, tu
from et.graphs.batch import GraphBatch
from et.graphs.counts import check_counts, counts_of
from et.graphs.features import encode_types, standardized, warn_of_zero_edges
from et.graphs.graph_list import load_graph_list
from et.graphs.positional import with_eigenvectors
from et.graphs.protocol import FEWEST, everything_split, held_out_split
from et.graphs.published import standardize_by_default
from et.training.sampler import EpochSampler, per_process, rank_and_world, shared_batches
from et.utils.errors import UserError
from et.utils.features import to_float32

Kind = Literal["tu", "gnnbench", "zinc", "generated", "extracted", "zinc_variant", "digits", "file"]


class GraphSubset(Dataset):
    """Some graphs of a data set, fetched a batch at a time: samples are (epoch, index), a batch is a GraphBatch.

    Args:
        graphs: All graphs.
        indices: Indices of the graphs of the subset, (n,).
    """

    def __init__(self, graphs: GraphBatch, indices: Tensor):
        self.graphs, self.indices = graphs, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> GraphBatch:
        return self.graphs.select(self.indices[[index for _, index in samples]])


class GraphData(pl.LightningDataModule):
    """Graphs of one data set with their split, features and eigenvectors.

    Args:
        name: Name of the data set as its collection spells it, for example ``MUTAG``. If None, the file's name (source
            ``file`` only).
        source: Where the data come from: see :meth:`load`.
        root: The data root.
        num_features, num_edge_features, num_classes: Counts that the model is built for, compared with the data.
            ``num_edge_features`` is 0 if edges have none; ``num_classes`` is 1 for a regression. If None, the data's.
        batch_size: Number of graphs in a batch over all processes.
        num_eigenvectors: Number of Laplacian eigenvectors k (eq. 23).
        fold: Index of the test fold, for data without an official split under ``protocol="held_out"``. Else 0.
        folds: Number of folds.
        protocol: ``held_out`` or ``released``. Released: data without an official split train and score all graphs.
        fidelity: ``released`` applies ``max_nodes``.
        max_nodes: Number of nodes that a graph is cut to (released code). If None, none is cut.
        one_hot: If True, integer node and edge types (ZINC) become one-hot columns.
        standardize: If True, node attributes get mean 0 and standard deviation 1 over the training graphs' nodes. If
            None, that holds for the user's own data, and for others under ``fidelity="paper"`` (neither text nor
            released code does it; eq. 24 squares attributes far from 1).
        sizes: Numbers of training, validation and test graphs to generate. If None, those of the published data.
        made_seed: Seed of generated graphs. It differs from the run's seed so that runs share their data.
        cache: Folder for derived files. If None, one inside the data root.
        seed: Seed of the folds and of the order of batches.
        num_workers: Number of processes that assemble batches.
        path: The graphs of source ``file``, see :func:`et.graphs.graph_list.load_graph_list`.
        drop_empty: If True, graphs without nodes are left out (sources ``tu`` and ``file``). If False, they are an
            error.
        stratified: If True, folds have the class proportions of the whole data set. If False, classes are ignored,
            which allows classes with fewer graphs than folds.

    Raises:
        ValueError: A size is too small.
        UserError: Data are missing, damaged, or not what the configuration says (from :meth:`setup`).
    """

    def __init__(
        self,
        name: str | None,
        source: Kind,
        root: str | Path,
        num_features: int | None,
        num_edge_features: int | None,
        num_classes: int | None,
        batch_size: int = 32,
        num_eigenvectors: int = 15,
        fold: int = 0,
        folds: int = 10,
        protocol: Literal["held_out", "released"] = "held_out",
        fidelity: Literal["paper", "released"] = "paper",
        max_nodes: int | None = None,
        one_hot: bool = False,
        standardize: bool | None = False,
        sizes: Sequence[int] | None = None,
        made_seed: int = 0,
        cache: str | Path | None = None,
        seed: int = 0,
        num_workers: int = 0,
        path: str | Path | None = None,
        drop_empty: bool = False,
        stratified: bool = True,
    ):
        super().__init__()
        check_sizes(batch_size=batch_size, num_eigenvectors=num_eigenvectors)
        check_sizes(**{f"sizes[{number}]": size for number, size in enumerate(sizes or ())})
        check_sizes(folds=folds)
        check_sizes(minimum=0, num_workers=num_workers, fold=fold)
        check_given(num_features=num_features, num_classes=num_classes, max_nodes=max_nodes)
        check_given(minimum=0, num_edge_features=num_edge_features)
        if source == "file" and name is None and path is not None:
            name = Path(path).stem
        self.path = path
        self.name, self.source, self.root = name, source, Path(root)
        self.num_features, self.num_edge_features, self.num_classes = num_features, num_edge_features, num_classes
        self.batch_size, self.num_eigenvectors, self.num_workers = batch_size, num_eigenvectors, num_workers
        self.fold, self.folds, self.protocol, self.seed = fold, folds, protocol, seed
        self.max_nodes = max_nodes if fidelity == "released" else None
        self.one_hot, self.sizes, self.made_seed = one_hot, sizes, made_seed
        own = source == "file" or standardize_by_default(source, name) is None
        self.standardize = (own or fidelity != "released") if standardize is None else standardize
        self.cache = cache
        self.drop_empty, self.stratified = drop_empty, stratified
        self.graphs: GraphBatch | None = None

    @staticmethod
    def location(config: Mapping[str, Any]) -> str | Path:
        """The file or folder that a user's own graphs are in."""
        if config.get("path") is not None:
            return config["path"]
        folders = {"tu": f"tu/{config['name']}", "extracted": "mnist"}
        return Path(config["root"]) / folders.get(config["source"], "zinc")

    def load(self) -> sources.Source:
        """Read, generate or extract the data set.

        Raises:
            UserError: There is no such source, or its data are missing or damaged.
        """
        name, root, cache = self.name, self.root, sources.cache_folder(self.root, self.cache)
        if self.source not in ("generated", "extracted") and (self.sizes is not None or self.made_seed != 0):
            raise UserError(
                f"data.sizes and data.made_seed are of generated and extracted graphs: leave them out for {name}"
            )
        if self.drop_empty and self.source not in ("tu", "file"):
            raise UserError(f"data.drop_empty is of data.source=tu and file: leave it out for {name}")
        match self.source:
            case "tu":
                return tu.load_tu(name, root, drop_empty=self.drop_empty)
            case "gnnbench":
                return sources.load_gnn_benchmark(name, root, cache)
            case "zinc":
                return sources.load_zinc(name, root, cache)
            case "zinc_variant":
                return synthetic.load_zinc_variant(root)
            case "generated":
                return synthetic.generate_block_models(name, cache, self.made_seed, self.sizes)
            case "extracted":
                return synthetic.extract_superpixels(name, root, cache, self.made_seed, self.sizes)
            case "digits":
                return synthetic.load_digits()
            case "file":
                return load_graph_list(self.path, drop_empty=self.drop_empty, types=self.one_hot)
        raise UserError(f"data.source must be one of {', '.join(Kind.__args__)}, not {self.source!r}")

    def missing(self) -> list[str]:
        """What ``setup`` would have to download or ask for, a folder or files in it; reads and fetches nothing."""
        files = sources.files_of(self.source, self.name, self.root)
        folders = {str(file.parent) for file in files if not file.parent.exists()}
        return sorted(folders) or [str(file) for file in files if not file.exists()]

    def prepare_data(self) -> None:
        """Fill the caches in one process, so that the others of a node read them."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        if self.graphs is not None:
            return
        loaded = self.load()
        graphs = self.encoded(loaded.graphs)
        stated = {key: getattr(self, key) for key in ("num_features", "num_edge_features", "num_classes")}
        vars(self).update(check_counts(graphs, str(self.name), self.source, stated))
        self.check_fold(loaded.split is not None)
        self.cut = self.max_nodes is not None and int(graphs.sizes.max()) > self.max_nodes
        if self.cut:
            graphs = graphs.truncate(self.max_nodes)
        self.has_official_split = loaded.split is not None
        self.split = self.make_split(graphs, loaded.split)
        check_shares(self.split)
        self.absent = self.absent_classes(graphs)
        if self.standardize:
            graphs = standardized(graphs, self.split["train"])
        graphs = replace(graphs, x=to_float32(graphs.x, str(self.name)))
        if self.source == "file":
            warn_of_zero_edges(graphs)
        self.graphs = with_eigenvectors(graphs, self.num_eigenvectors, sources.cache_folder(self.root, self.cache))
        self.variant, self.sha256, self.dropped_empty = loaded.variant, loaded.sha256, loaded.dropped_empty

    def counts(self) -> dict[str, int]:
        """The numbers of features, edge features and classes that the data have.

        Raises:
            UserError: Data is missing or damaged, or its labels are no classes.
        """
        return counts_of(self.encoded(self.load().graphs), str(self.name), self.source, self.num_classes)

    def encoded(self, graphs: GraphBatch) -> GraphBatch:
        """``graphs`` with one-hot columns for types, where the configuration says so."""
        return encode_types(graphs, self.num_features, self.num_edge_features) if self.one_hot else graphs

    def check_fold(self, official: bool) -> None:
        """Raise UserError for a fold where nothing has folds: runs that differ in it alone would be the same run."""
        if self.fold != 0 and (official or self.protocol == "released"):
            why = f"{self.name} has an official split" if official else "protocol=released trains on all graphs"
            raise UserError(f"data.fold={self.fold}, but {why}: leave data.fold out (seed=N makes another run)")

    def make_split(self, graphs: GraphBatch, official: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Graph indices of ``train``, ``val`` and ``test``."""
        if self.protocol not in ("held_out", "released"):
            raise UserError(f"protocol must be held_out or released, not {self.protocol!r}")
        if official is not None:
            return official
        if graphs.level == "node" or graphs.y.is_floating_point():
            kind = "nodes" if graphs.level == "node" else "a regression"
            raise UserError(
                f"{self.name} has no parts, and folds are of graphs with a class each: for {kind} save a dictionary of "
                "three lists, train, val and test"
            )
        if self.protocol == "released":
            if len(graphs) < FEWEST:
                raise UserError(
                    f"{self.name} has {len(graphs)} graphs: protocol=released, which scores a tenth of nine tenths of "
                    f"them, needs {FEWEST}"
                )
            return everything_split(len(graphs))
        return held_out_split(graphs.y, self.fold, self.folds, self.seed, self.stratified)

    def absent_classes(self, graphs: GraphBatch) -> dict[str, list[int]]:
        """The classes of which a part of the split has no graph or node, by part; parts that hold all are left out.

        Raises:
            UserError: A file's own training list lacks a class that its other lists have.
        """
        absent: dict[str, list[int]] = {}
        if graphs.y.is_floating_point() or self.source not in ("tu", "file"):
            return absent
        classes = set(graphs.y.unique().tolist())
        for part, numbers in self.split.items():
            held = set(graphs.select(numbers).y.unique().tolist()) if len(numbers) else classes
            if held != classes:
                absent[part] = sorted(classes - held)
        for part, missing in absent.items():
            text = f"the part {part!r} of {self.name} has no {graphs.level} of class {', '.join(map(str, missing))}"
            if part == "train" and self.has_official_split:
                raise UserError(f"{text}, which other lists have: put some of them into the training list")
            warnings.warn(f"{text}: its numbers say nothing of that class", stacklevel=2)
        return absent

    def train_dataloader(self) -> DataLoader:
        subset = GraphSubset(self.graphs, self.split["train"])
        used = shared_batches(len(subset), self.batch_size)
        return self._loader(subset, EpochSampler(len(subset), self.seed, shuffle=True, used=used))

    def val_dataloader(self) -> DataLoader | list:
        """Nothing under the released protocol on data without an official split."""
        subset = GraphSubset(self.graphs, self.split["val"])
        if len(subset) == 0:
            return []
        return self._loader(subset, EpochSampler(len(subset)))

    def test_dataloader(self) -> DataLoader:
        subset = GraphSubset(self.graphs, self.split["test"])
        return self._loader(subset, EpochSampler(len(subset)))

    def predict_dataloader(self) -> DataLoader:
        """All graphs, in the order of the files."""
        subset = GraphSubset(self.graphs, torch.arange(len(self.graphs)))
        return self._loader(subset, EpochSampler(len(subset)))

    def _loader(self, subset: GraphSubset, sampler: EpochSampler) -> DataLoader:
        return DataLoader(
            subset,
            batch_size=per_process(self.batch_size),
            sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            persistent_workers=False,  # each epoch's iterator draws from the noise's generator, as without workers
        )

    def parts(self) -> Tensor:
        """(G,) uint8: 0 in no part, 1 train, 2 validation, 3 test; (N,) where nodes are classified.

        Under ``protocol=released`` without an official split, all graphs train and are tested.
        """
        parts = torch.zeros(len(self.graphs), dtype=torch.uint8)
        for code, part in ((3, "test"), (2, "val"), (1, "train")):
            parts[self.split[part]] = code
        return parts if self.graphs.level == "graph" else parts[self.graphs.graph_of_node]

    def describe(self) -> dict[str, Any]:
        """Provenance for result.json: what the data are, how many, and which graphs were in which part."""
        return {
            "name": self.name,
            "variant": self.variant,
            "sha256": self.sha256,
            "num_graphs": len(self.graphs),
            "num_nodes": self.graphs.num_nodes,
            "num_edges": self.graphs.num_edges,
            "largest_graph": int(self.graphs.sizes.max()),
            "num_classes": self.num_classes,
            "fold": None if self.has_official_split or self.protocol == "released" else self.fold,
            "folds": self.folds,
            "split": {part: len(numbers) for part, numbers in self.split.items()},
            "split_sha256": {part: _short_hash(numbers) for part, numbers in self.split.items()},
            "standardized": bool(self.standardize),
            **({"cut_to_nodes": self.max_nodes} if self.cut else {}),
            **({"dropped_empty": self.dropped_empty} if self.dropped_empty else {}),
            **({"absent_classes": self.absent} if self.absent else {}),
            **({} if self.stratified else {"stratified": False}),
        }


def _as_it_is(batch: GraphBatch) -> GraphBatch:
    return batch


def check_shares(split: Mapping[str, Tensor]) -> None:
    """Raise UserError for a part that has graphs, but not one for each process."""
    _, world = rank_and_world()
    for part, numbers in split.items():
        if 0 < len(numbers) < world:
            raise UserError(
                f"the part {part!r} has {len(numbers)} graphs for {world} processes: lower trainer.devices to at most "
                f"{len(numbers)}"
            )


def _short_hash(numbers: Tensor) -> str:
    return hashlib.sha256(numbers.contiguous().numpy().tobytes()).hexdigest()[:16]
