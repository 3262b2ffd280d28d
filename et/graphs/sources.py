"""Readers of GNNBenchmark and ZINC, offline first, and helpers shared by all readers of graphs."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from et.graphs.batch import GraphBatch, pack
from et.graphs.published import PUBLISHED_PARTS
from et.runs.record import COUNTS_ONLY, plain_name
from et.utils.errors import UserError
from et.utils.files import MACHINE_ERRORS, replacing
from et.utils.plain_pickle import only_data

SPLITS = ("train", "val", "test")
REBUILT = "rebuilt.json"  # beside ZINC's raw files: what scripts/build_zinc.py says of those that it wrote


# What each source reads below the data root.
FILES = {
    "tu": [f"tu/{{name}}/raw/{{name}}_{kind}.txt" for kind in ("A", "graph_indicator", "graph_labels")],
    "gnnbench": ["gnnbench/{name}/raw/{name}_v2.pt"],
    "zinc": [f"zinc/raw/{split}.{kind}" for split in SPLITS for kind in ("pickle", "index")],
    "zinc_variant": ["zinc/zinc12k_variant.npz"],
    "extracted": ["mnist/train.npz", "mnist/test.npz"],
}


def files_of(source: str, name: str, root: Path) -> list[Path]:
    """Files that ``source`` needs for the data set ``name``; empty for generated and embedded data.

    Raises:
        UserError: ``name`` leads out of the folder of the collection.
    """
    files = FILES.get(source, [])
    if any("{name}" in file for file in files):
        plain_name(name, "data.name")
    return [root / file.format(name=name) for file in files]


@dataclass(frozen=True)
class Source:
    """A data set as read.

    Attributes:
        graphs: All graphs.
        variant: ``exact``, or a description of the difference from the published data set of that name.
        sha256: Hash of the files, or of the graphs if they were generated.
        split: Graph indices of the official ``train``, ``val`` and ``test`` parts. None without an official split.
        dropped_empty: Number of graphs without nodes that were left out.
    """

    graphs: GraphBatch
    variant: str
    sha256: str
    split: dict[str, Tensor] | None = None
    dropped_empty: int = 0


def warn_of_variant(name: str, variant: str) -> str:
    """Warn that the data saved as ``name`` are not the published ones; returns ``variant``."""
    warnings.warn(f"{name} is not the published data set of that name: recorded as {variant!r}", stacklevel=3)
    return variant


def counted_variant(name: str, split: dict[str, Tensor], where: str) -> str:
    """Variant of files with a published data set's name whose hash is unknown, by their numbers of graphs."""
    found, published = tuple(len(split[part]) for part in SPLITS), PUBLISHED_PARTS.get(name)
    if published is None or found == published:
        return COUNTS_ONLY
    text = " + ".join(map(str, found))
    return warn_of_variant(name, f"{text} graphs in {where}, not the published {' + '.join(map(str, published))}")


def load_gnn_benchmark(name: str, root: Path, cache: Path) -> Source:
    """Read MNIST, CIFAR10, PATTERN or CLUSTER with its official split from <root>/gnnbench/NAME/raw.

    For the two image data sets the coordinates of the superpixels are appended to their intensities (appendix D.3).
    """
    from torch_geometric.datasets import GNNBenchmarkDataset

    if name not in GNNBenchmarkDataset.urls:
        raise UserError(f"GNNBenchmark has {', '.join(GNNBenchmarkDataset.urls)}, not {name!r}")
    url = GNNBenchmarkDataset.urls[name]
    raw = root / "gnnbench" / name / "raw"
    (file,) = files_of("gnnbench", name, root)

    def read(processed: Path) -> list[Any]:
        class Cached(GNNBenchmarkDataset):
            processed_dir = property(lambda self: str(processed))

        return [Cached(str(root / "gnnbench"), name, split=split) for split in SPLITS]

    if not file.exists():
        download(lambda: fresh_read(read, cache), file.name, url, raw)
    digest = hash_files([file])
    parts = read_processed(read, cache / "gnnbench" / f"{name}-{digest[:16]}.pt", raw, f"fetch them again from {url}")
    graphs, split = _join(parts, "node" if name in ("PATTERN", "CLUSTER") else "graph")
    return Source(graphs, counted_variant(name, split, file.name), digest, split)


def load_zinc(name: str, root: Path, cache: Path) -> Source:
    """Read ZINC (250k molecules), or the published subset of 12k for ``name="ZINC12k"``, from <root>/zinc/raw.

    Atom and bond types are one integer feature each, as in the released code.
    """
    from torch_geometric.datasets import ZINC

    raw = root / "zinc" / "raw"
    files, subset = files_of("zinc", name, root), name == "ZINC12k"

    def read(processed: Path) -> list[Any]:
        class Cached(ZINC):
            processed_dir = property(lambda self: str(processed))

        return [Cached(str(root / "zinc"), subset=subset, split=split) for split in SPLITS]

    if not raw.exists():
        address = f"{ZINC.url} (or build them from SMILES: docs/how-to/zinc.md)"
        download(lambda: fresh_read(read, cache), "train.pickle, train.index, ...", address, raw)
    absent = [file.name for file in files if not file.exists()]
    if absent:
        # torch_geometric would delete the folder and download it again.
        raise UserError(f"{raw} lacks {', '.join(absent)}; they are in {ZINC.url} and {ZINC.split_url.format('train')}")
    digest = hash_files(files)
    rebuilt = rebuilt_variant(raw / REBUILT, name)
    parts = read_processed(read, cache / "zinc" / f"{name}-{digest[:16]}.pt", raw, f"fetch them again from {ZINC.url}")
    graphs, split = _join(parts, "graph")
    return Source(graphs, rebuilt or counted_variant(name, split, "zinc/raw"), digest, split)


def rebuilt_variant(path: Path, name: str) -> str | None:
    """Description that scripts/build_zinc.py wrote for the data set ``name``; None if the script did not write the
    files.

    Raises:
        UserError: The file is damaged.
    """
    if not path.exists():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[name])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: run scripts/build_zinc.py again") from error


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files, in the given order.

    Raises:
        UserError: A path is a folder or cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except (IsADirectoryError, PermissionError) as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): replace it by a readable file") from error
    return digest.hexdigest()


def is_resource_error(error: BaseException) -> bool:
    """True if ``error`` says that memory, disk space or file handles ran out, which says nothing about the file being
    read.
    """
    of_torch = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return of_torch or isinstance(error, MemoryError) or getattr(error, "errno", None) in MACHINE_ERRORS


def consecutive(counts: Sequence[int]) -> dict[str, Tensor]:
    """Graph indices of train, val and test parts of the given sizes that follow one another."""
    return dict(zip(SPLITS, torch.arange(sum(counts)).split(list(counts)), strict=True))


def cache_folder(root: Path, cache: str | Path | None = None) -> Path:
    """Folder of derived files: ``cache`` if given, else <root>/cache, else (if ``root`` is read-only) the user's cache
    folder.
    """
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


def download(attempt: Callable[[], Any], files: str, address: str, folder: Path) -> None:
    """Let torch_geometric download; if that fails, raise an error with the files, their address and their folder."""
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


def fresh_read(read: Callable[[Path], list[Any]], cache: Path) -> list[tuple[Any, dict[str, Tensor]]]:
    """(data, slices) of the InMemoryDatasets that ``read`` builds from raw files.

    torch_geometric unpickles ``pre_transform.pt`` and ``pre_filter.pt`` in a folder of processed files, which may
    execute code. It therefore always gets an empty folder, which is removed afterwards.

    Args:
        read: Takes the folder for processed files and returns the data sets.
        cache: Parent of that folder.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with only_data(), tempfile.TemporaryDirectory(prefix=".processing-", dir=cache) as empty:
        return [(dataset._data, dataset.slices) for dataset in read(Path(empty))]


def read_processed(
    read: Callable[[Path], list[Any]], file: Path, raw: Path, advice: str
) -> list[tuple[Any, dict[str, Tensor]]]:
    """(data, slices) of the InMemoryDatasets that ``read`` builds, cached as plain tensors in ``file``.

    Concurrent processes, such as the first jobs of a sweep, each build the file and replace it atomically. A file that
    does not load as plain tensors is built again.

    Args:
        read: Takes the folder for processed files and returns the data sets.
        file: The cache file.
        raw: Folder of the published files.
        advice: Next step for the error message.

    Raises:
        UserError: The published files in ``raw`` cannot be read.
    """
    from torch_geometric.data import Data

    if file.exists():
        try:
            parts = torch.load(file, map_location="cpu", weights_only=True)
            return [(Data.from_dict(tensors), slices) for tensors, slices in parts]
        except Exception as error:  # whatever a damaged file leads to
            if is_resource_error(error):
                raise
    try:
        found = fresh_read(read, file.parent)
    except Exception as error:
        if is_resource_error(error):
            raise
        raise UserError(
            f"the files in {raw} cannot be read ({type(error).__name__}: {error}): they are truncated or damaged; "
            f"{advice}"
        ) from error
    parts = [
        ({k: v for k, v in data.to_dict().items() if isinstance(v, Tensor)}, dict(slices)) for data, slices in found
    ]
    with replacing(file) as fresh:
        torch.save(parts, fresh)
    return found


def _join(parts: list[tuple[Any, dict[str, Tensor]]], level: str) -> tuple[GraphBatch, dict[str, Tensor]]:
    """Concatenate the graphs of train, val and test part; also returns the indices of each part."""
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
    return graphs, consecutive(counts)
