"""Reading the published files: their contents, what is missing, cut short or contradictory."""

import os
import pickle
import stat

import numpy as np
import pytest
import torch

from et.errors import UserError
from et.graphs import sources
from et.graphs.sources import cache_folder, load_gnn_benchmark, load_tu, load_zinc, tu_variant


def test_tu_features_are_attributes_then_labels_and_edges_are_those_of_the_file(tmp_path, make_tu):
    raw = make_tu(tmp_path, attributes=True)
    source = load_tu("TOY", tmp_path, tmp_path / "cache")
    graphs = source.graphs
    assert source.variant == "user data in TUDataset's form" and source.split is None
    assert len(graphs) == 40 and graphs.x.shape[1] == 5 and graphs.edge_attr.shape[1] == 2
    attributes = np.loadtxt(raw / "TOY_node_attributes.txt", delimiter=",")
    labels = np.loadtxt(raw / "TOY_node_labels.txt", dtype=int)
    assert np.allclose(graphs.x.numpy(), np.concatenate([attributes, np.eye(3)[labels]], axis=1), atol=1e-5)
    written = {tuple(e) for e in np.loadtxt(raw / "TOY_A.txt", delimiter=",", dtype=int) - 1}
    assert {tuple(e) for e in graphs.edge_index.T.tolist()} == written
    assert graphs.y.tolist() == [0, 1] * 20


def test_tu_without_node_features_gets_degrees(tmp_path, make_tu):
    make_tu(tmp_path, node_labels=False, edge_labels=False)
    graphs = load_tu("TOY", tmp_path, tmp_path / "cache").graphs
    degree = torch.bincount(graphs.edge_index[1], minlength=graphs.num_nodes)
    assert torch.equal(graphs.x, degree.float()[:, None])
    assert graphs.edge_attr is None


def test_tu_raw_folder_stays_as_it_was_and_may_be_read_only(tmp_path, make_tu):
    raw = make_tu(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    raw.chmod(stat.S_IRUSR | stat.S_IXUSR)
    load_tu("TOY", tmp_path, tmp_path.parent / f"{tmp_path.name}-cache")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    raw.chmod(stat.S_IRWXU)


def test_tu_variant_tells_published_data_from_others():
    assert tu_variant("MUTAG", 188) == "exact"
    assert tu_variant("MUTAG", 187) == "187 graphs where the published data set has 188"
    assert tu_variant("MINE", 188).startswith("user data")


def test_tu_processed_file_is_made_anew_when_the_raw_files_change_or_it_is_damaged(tmp_path, make_tu):
    raw, cache = make_tu(tmp_path), tmp_path / "cache"
    first = load_tu("TOY", tmp_path, cache)
    (processed,) = cache.rglob("data.pt")
    processed.write_bytes(b"damaged")
    assert torch.equal(load_tu("TOY", tmp_path, cache).graphs.x, first.graphs.x)
    labels = (raw / "TOY_graph_labels.txt").read_text().split()
    (raw / "TOY_graph_labels.txt").write_text("\n".join(reversed(labels)) + "\n")
    second = load_tu("TOY", tmp_path, cache)
    assert second.sha256 != first.sha256
    assert second.graphs.y.tolist() == [1, 0] * 20


@pytest.mark.parametrize("kind", ["A", "graph_indicator", "graph_labels"])
def test_tu_missing_file_is_named_with_its_address(tmp_path, make_tu, kind):
    (make_tu(tmp_path) / f"TOY_{kind}.txt").unlink()
    with pytest.raises(UserError, match=rf"TOY_{kind}\.txt.*graphkerneldatasets/TOY\.zip"):
        load_tu("TOY", tmp_path, tmp_path / "cache")


KINDS = ("A", "graph_indicator", "graph_labels", "node_labels", "edge_labels", "node_attributes")
DAMAGES = {
    "half": lambda text: "".join(text.splitlines(keepends=True)[: text.count("\n") // 2]),
    "empty": lambda text: "",
    "within a line": lambda text: text[: text.rfind(",") + 1],
    "a column": lambda text: text[: text.rfind(",")] + "\n",
    "the last line's end": lambda text: text.rstrip("\n"),
    "a blank line": lambda text: text.replace("\n", "\n\n", 1),
    "text": lambda text: text.replace("1", "one", 1),
    "a fraction": lambda text: text.replace("1", "1.5", 1),
    "a huge label": lambda text: text.replace("1", "1000000000", 1),
}


@pytest.mark.parametrize(
    "kind, how",
    [
        *((kind, how) for kind in KINDS for how in ("half", "empty", "text")),
        *((kind, how) for kind in ("A", "node_attributes") for how in ("within a line", "a column")),
        *(("node_labels", how) for how in ("a fraction", "a huge label", "a blank line", "the last line's end")),
        ("edge_labels", "a huge label"), ("graph_labels", "a blank line"),
    ],
)  # fmt: skip
def test_tu_file_that_is_cut_short_or_damaged_is_refused(tmp_path, make_tu, kind, how):
    path = make_tu(tmp_path, attributes=True) / f"TOY_{kind}.txt"
    text = path.read_text()
    damaged = DAMAGES[how](text)
    assert damaged != text
    path.write_text(damaged)
    with pytest.raises(UserError, match=r"TOY|need"):
        load_tu("TOY", tmp_path, tmp_path / "cache")


def test_the_first_of_several_processes_leaves_the_derived_files(tmp_path):
    processed = tmp_path / "derived"

    class Made:
        _data, slices = "data", "slices"

    def read(folder):
        assert folder != processed
        processed.mkdir()
        (processed / "by").write_text("another process")
        return [Made]

    assert sources._read(read, processed, tmp_path, "address") == [("data", "slices")]
    assert (processed / "by").read_text() == "another process"
    assert [path.name for path in tmp_path.iterdir()] == ["derived"], "nothing of one's own is left"


def test_tu_graph_without_nodes_and_edges_across_graphs_are_refused(tmp_path, make_tu):
    raw = make_tu(tmp_path / "empty")
    (raw / "TOY_graph_labels.txt").open("a").write("1\n")
    with pytest.raises(UserError, match="graph 41 has a label but no nodes"):
        load_tu("TOY", tmp_path / "empty", tmp_path / "cache")
    raw = make_tu(tmp_path / "across", edge_labels=False)
    (raw / "TOY_A.txt").open("a").write("1, 30\n30, 1\n")
    with pytest.raises(UserError, match="two different graphs"):
        load_tu("TOY", tmp_path / "across", tmp_path / "cache")


def test_tu_graphs_without_edges_are_graphs(tmp_path, make_tu):
    raw = make_tu(tmp_path, edge_labels=False, num_graphs=4)
    nodes = (raw / "TOY_graph_indicator.txt").read_text().split()
    last = {str(1 + i) for i, graph in enumerate(nodes) if graph in ("2", "4")}  # one inside, one at the end
    kept = [line for line in (raw / "TOY_A.txt").read_text().splitlines() if line.split(",")[0] not in last]
    (raw / "TOY_A.txt").write_text("\n".join(kept) + "\n")
    graphs = load_tu("TOY", tmp_path, tmp_path / "cache").graphs
    assert len(graphs) == 4
    assert [count > 0 for count in graphs.edge_ptr.diff().tolist()] == [True, False, True, False]


def test_missing_data_that_cannot_be_downloaded_is_one_clear_error(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    from torch_geometric.datasets import ZINC, GNNBenchmarkDataset, TUDataset

    for dataset in (TUDataset, GNNBenchmarkDataset, ZINC):
        monkeypatch.setattr(dataset, "download", offline)
    for load, name, folder, address in (
        (load_tu, "NCI109", "tu/NCI109/raw", "NCI109.zip"),
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


def test_zinc_subset_and_incomplete_folder(tmp_path):
    raw = tmp_path / "zinc" / "raw"
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
    subset, full = (load_zinc(name, tmp_path, tmp_path / "cache") for name in ("ZINC12k", "ZINC"))
    assert len(subset.graphs) == 6 and len(full.graphs) == 11
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


@pytest.mark.data
@pytest.mark.parametrize(
    "name, graphs, nodes, edges, features",
    [
        ("MUTAG", 188, 17.93, 19.79, 7),
        ("ENZYMES", 600, 32.63, 62.14, 21),
        ("PROTEINS", 1113, 39.06, 72.82, 4),
        ("NCI1", 4110, 29.87, 32.30, 37),
        ("Mutagenicity", 4337, 30.32, 30.77, 14),
    ],
)
def test_real_data_agrees_with_table_8(data_root, tmp_path, name, graphs, nodes, edges, features):
    found = load_tu(name, data_root, tmp_path).graphs
    assert len(found) == graphs and found.x.shape[1] == features
    assert found.num_nodes / graphs == pytest.approx(nodes, abs=0.006)
    assert found.num_edges / 2 / graphs == pytest.approx(edges, abs=0.006)


@pytest.mark.data
@pytest.mark.slow
def test_dd_agrees_with_table_8_and_is_not_truncated(data_root, tmp_path):
    found = load_tu("DD", data_root, tmp_path).graphs
    assert len(found) == 1178 and found.x.shape[1] == 89
    assert int((found.x.sum(0) > 0).sum()) == 82  # of the labels 1 .. 89 that many occur
    assert found.num_nodes / 1178 == pytest.approx(284.32, abs=0.006)
    assert found.num_edges / 2 / 1178 == pytest.approx(715.66, abs=0.006)
    assert int(found.sizes.max()) == 5748
