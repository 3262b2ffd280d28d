"""Reading the published files: their contents, what is missing, cut short or contradictory."""

import errno
import os
import pickle
import shutil

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.datasets import ZINC, GNNBenchmarkDataset

from et.graphs import sources, tu
from et.graphs.published import PUBLISHED_PARTS
from et.graphs.sources import cache_folder, load_gnn_benchmark, load_zinc
from et.graphs.tu import load_tu
from et.utils.errors import UserError


class Made:
    """Stands for one of torch_geometric's data sets."""

    def __init__(self):
        self._data = Data(x=torch.ones(3, 2), edge_index=torch.zeros(2, 4, dtype=torch.int64))
        self.slices = {"x": torch.tensor([0, 3])}


def test_several_processes_may_derive_the_same_file(tmp_path):
    file = tmp_path / "derived.pt"

    def read(folder):
        assert not any(folder.iterdir())
        sources.read_processed(lambda folder: [Made()], file, tmp_path, "address")  # another one, at the same time
        return [Made()]

    for _ in range(2):
        ((data, slices),) = sources.read_processed(read, file, tmp_path, "address")
        assert torch.equal(data.x, Made()._data.x) and slices.keys() == {"x"} and data.edge_attr is None
    assert [path.name for path in tmp_path.iterdir()] == ["derived.pt"], "nothing of one's own is left"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    ],
)
def test_derived_files_are_kept_where_the_machine_is_short_of_something(tmp_path, error, monkeypatch):
    file = tmp_path / "derived.pt"
    file.write_bytes(b"derived")

    def read(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", read)
    with pytest.raises(type(error)):
        sources.read_processed(read, file, tmp_path, "address")
    assert file.read_bytes() == b"derived"


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


@pytest.mark.parametrize("kind", ("tu", "gnnbench", "zinc"))
def test_processed_files_of_torch_geometric_are_never_unpickled(tmp_path, monkeypatch, make_tu, kind):
    """Wherever such files lie, before the first reading and after it, they are not looked at."""
    marker, cache = tmp_path / "ran", tmp_path / "cache"
    if kind == "tu":
        make_tu(tmp_path)
        load, base = (lambda: load_tu("TOY", tmp_path)), tmp_path / "tu" / "TOY"
    elif kind == "gnnbench":
        superpixel_file(tmp_path)
        load, url = (lambda: load_gnn_benchmark("MNIST", tmp_path, cache)), GNNBenchmarkDataset
        base = tmp_path / "gnnbench" / "MNIST"
    else:
        write_zinc(tmp_path)
        load, base, url = (lambda: load_zinc("ZINC12k", tmp_path, cache)), tmp_path / "zinc", ZINC
    names = ("pre_transform.pt", "pre_filter.pt", "data.pt", "train_data.pt", "train.pt", "val.pt", "test.pt")

    def plant():
        places = [base / "processed", base / "subset" / "processed", base / "full" / "processed"]
        places += [path for path in cache.rglob("*") if path.is_dir()] if cache.exists() else []
        digests = [path.with_suffix("") for path in cache.rglob("*.pt")] if cache.exists() else []
        for place in (*places, *digests):
            place.mkdir(parents=True, exist_ok=True)
            for name in names:
                torch.save(Hostile(marker), place / name)
        for path in list(cache.rglob("*.pt")) if cache.exists() else []:
            torch.save(Hostile(marker), path)

    plant()
    first = load()
    plant()
    again = load()
    assert torch.equal(first.graphs.x, again.graphs.x) and first.sha256 == again.sha256
    # Without the raw files they are fetched, which must not lead to the processed ones either.
    raw = base / "raw"
    kept = raw.rename(tmp_path / "kept")
    if kind == "tu":
        monkeypatch.setattr(tu, "fetch_tu", lambda name, raw: shutil.copytree(kept, raw))
    else:
        monkeypatch.setattr(url, "download", lambda self: shutil.copytree(kept, self.raw_dir, dirs_exist_ok=True))
    assert torch.equal(load().graphs.x, first.graphs.x)
    assert not marker.exists()


def test_torch_out_of_memory_is_told_from_a_damaged_file():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert sources.is_resource_error(caught.value)
    assert not sources.is_resource_error(RuntimeError("PytorchStreamReader failed"))


def test_missing_data_that_cannot_be_downloaded_is_one_clear_error(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(tu, "fetch_tu", offline)
    for dataset in (GNNBenchmarkDataset, ZINC):
        monkeypatch.setattr(dataset, "download", offline)
    for load, name, folder, address in (
        (lambda name, root, cache: load_tu(name, root), "NCI109", "tu/NCI109/raw", "NCI109.zip"),
        (load_gnn_benchmark, "PATTERN", "gnnbench/PATTERN/raw", "PATTERN_v2.zip"),
        (load_zinc, "ZINC12k", "zinc/raw", "molecules.zip"),
    ):
        with pytest.raises(UserError) as caught:
            load(name, tmp_path, tmp_path / "cache")
        assert str(tmp_path / folder) in str(caught.value) and address in str(caught.value)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="PATTERN"):
        load_gnn_benchmark("NOSUCH", tmp_path, tmp_path)


def superpixel_file(root, name="MNIST"):
    """A few graphs in the published file's form: lists of dictionaries for train, val and test."""
    generator, parts = torch.Generator().manual_seed(0), []
    for count in (6, 2, 3):
        part = []
        for number in range(count):
            n = 4 + number % 3
            edge_index = torch.tensor([list(range(n - 1)), [i + 1 for i in range(n - 1)]])
            entry = {"x": torch.rand(n, 1, generator=generator), "edge_index": edge_index}
            if name == "MNIST":
                entry |= {
                    "pos": torch.rand(n, 2, generator=generator),
                    "edge_attr": torch.rand(n - 1, generator=generator),
                }
            entry["y"] = torch.tensor([number % 10]) if name == "MNIST" else torch.arange(n) % 2
            part.append(entry)
        parts.append(part)
    raw = root / "gnnbench" / name / "raw"
    raw.mkdir(parents=True)
    torch.save(parts, raw / f"{name}_v2.pt")
    return parts


def test_superpixels_have_coordinates_and_their_official_split(tmp_path):
    parts = superpixel_file(tmp_path)
    source = load_gnn_benchmark("MNIST", tmp_path, tmp_path / "cache")
    assert {name: len(numbers) for name, numbers in source.split.items()} == {"train": 6, "val": 2, "test": 3}
    graph, entry = source.graphs.select([7]), parts[1][1]
    assert torch.equal(graph.x, torch.cat([entry["x"], entry["pos"]], dim=1))
    assert torch.equal(graph.edge_index, entry["edge_index"])
    assert torch.equal(graph.edge_attr[:, 0], entry["edge_attr"])
    assert graph.y.tolist() == entry["y"].tolist() and graph.level == "graph"
    assert torch.equal(load_gnn_benchmark("MNIST", tmp_path, tmp_path / "cache").graphs.x, source.graphs.x)


def test_official_files_of_other_sizes_are_a_variant(tmp_path, monkeypatch):
    superpixel_file(tmp_path)
    with pytest.warns(UserWarning, match="MNIST is not the published data set"):
        variant = load_gnn_benchmark("MNIST", tmp_path, tmp_path / "cache").variant
    assert variant == "6 + 2 + 3 graphs in MNIST_v2.pt, not the published 55000 + 5000 + 10000"
    monkeypatch.setitem(PUBLISHED_PARTS, "MNIST", (6, 2, 3))
    assert load_gnn_benchmark("MNIST", tmp_path, tmp_path / "cache").variant.startswith("exact in its counts")


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b""])
def test_official_file_that_is_cut_short_is_refused_with_its_address(tmp_path, damage):
    superpixel_file(tmp_path)
    file = tmp_path / "gnnbench" / "MNIST" / "raw" / "MNIST_v2.pt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"gnnbench/MNIST/raw cannot be read.*MNIST_v2\.zip"):
        load_gnn_benchmark("MNIST", tmp_path, tmp_path / "cache")


def test_pattern_is_a_task_about_nodes(tmp_path):
    superpixel_file(tmp_path, "PATTERN")
    graphs = load_gnn_benchmark("PATTERN", tmp_path, tmp_path / "cache").graphs
    assert graphs.level == "node" and len(graphs.y) == graphs.num_nodes


def write_zinc(root):
    """A few molecules in the form of ZINC's raw files, in the folder that is returned."""
    raw = root / "zinc" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 5), ("val", 3), ("test", 3)):
        molecules = [
            {
                "atom_type": torch.tensor([0, 5, 2]),
                "bond_type": torch.tensor([[0, 1, 0], [1, 0, 2], [0, 2, 0]]),
                "logP_SA_cycle_normalized": torch.tensor([float(number)]),
            }
            for number in range(count)
        ]
        (raw / f"{part}.pickle").write_bytes(pickle.dumps(molecules))
        (raw / f"{part}.index").write_text("0,2\n")
    return raw


def test_zinc_subset_and_incomplete_folder(tmp_path):
    raw = write_zinc(tmp_path)
    subset, full = (load_zinc(name, tmp_path, tmp_path / "cache") for name in ("ZINC12k", "ZINC"))
    assert len(subset.graphs) == 6 and len(full.graphs) == 11
    assert subset.variant.startswith("2 + 2 + 2 graphs in zinc/raw, not the published 10000 + 1000 + 1000")
    assert full.variant.endswith("not the published 220011 + 24445 + 5000")
    assert subset.graphs.y.tolist() == [0, 2, 0, 2, 0, 2]
    assert subset.graphs.x[:3, 0].tolist() == [0, 5, 2]
    assert sorted(subset.graphs.edge_attr[:4, 0].tolist()) == [1, 1, 2, 2]
    whole = (raw / "val.pickle").read_bytes()
    for name, damaged in (("val.pickle", whole[: len(whole) // 2]), ("val.index", b""), ("val.index", b"0,7\n")):
        former = (raw / name).read_bytes()
        (raw / name).write_bytes(damaged)
        with pytest.raises(UserError, match=r"zinc/raw cannot be read"):
            load_zinc("ZINC12k", tmp_path, tmp_path / "cache")
        (raw / name).write_bytes(former)
    (raw / "val.index").unlink()
    with pytest.raises(UserError, match=r"lacks val\.index"):
        load_zinc("ZINC", tmp_path, tmp_path / "cache")
    assert (raw / "train.pickle").exists()  # torch_geometric would have deleted it


def test_cache_goes_to_the_data_root_or_where_it_can_be_written(tmp_path, monkeypatch):
    assert cache_folder(tmp_path) == tmp_path / "cache"
    assert cache_folder(tmp_path, "/elsewhere") == sources.Path("/elsewhere")
    monkeypatch.setattr(os, "access", lambda *args: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert str(cache_folder(tmp_path)).startswith(str(tmp_path / "home"))
