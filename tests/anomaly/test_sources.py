from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from scipy.sparse import csc_matrix

from et.anomaly import sources
from et.anomaly.graph import check_graph
from et.anomaly.published import PUBLISHED, Published
from et.anomaly.sources import load_graph
from et.utils.errors import UserError
from tests.anomaly.conftest import make_graph, save_npz


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def adjacency(edge_index: torch.Tensor, num_nodes: int) -> csc_matrix:
    ones = np.ones(edge_index.shape[1])
    matrix = csc_matrix((ones, edge_index.numpy()), shape=(num_nodes, num_nodes))
    matrix.data[:] = 1  # repeated edges were summed
    return matrix


def save_fraud_mat(path: Path, graph, names=("net_upu", "net_usu")) -> None:
    matrices = {name: adjacency(e, graph.num_nodes) for name, e in zip(names, graph.relations.values(), strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = graph.labels.numpy()[None].astype(float)
    savemat(path, {**matrices, "features": csc_matrix(graph.features.numpy()), "label": labels})


def edge_set(edge_index: torch.Tensor) -> set[tuple[int, int]]:
    return set(map(tuple, edge_index.T.tolist()))


def test_npz_returns_what_was_saved(graph, graph_file):
    read = load_graph("file", "", graph_file)
    assert torch.equal(read.features, graph.features) and torch.equal(read.labels, graph.labels)
    assert {name: e.tolist() for name, e in read.relations.items()} == {
        name: e.tolist() for name, e in graph.relations.items()
    }
    assert (read.name, read.variant, read.sha256()) == ("small", "user data", graph.sha256())


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.uint32, np.uint64, np.int16, np.int32])
def test_ids_of_any_whole_type_are_read(tmp_path, dtype):
    graph = make_graph(120)
    edges = {f"edge_index_{name}": edge_index.numpy().astype(dtype) for name, edge_index in graph.relations.items()}
    read = load_graph("file", "", save_npz(graph, tmp_path / "small.npz", **edges))
    check_graph(read)
    assert read.sha256() == graph.sha256()


def test_mat_without_single_relations_has_the_homogeneous_one(graph, tmp_path):
    merged = torch.cat(list(graph.relations.values()), dim=1)
    features, labels = csc_matrix(graph.features.numpy()), graph.labels.numpy()[None].astype(float)
    savemat(tmp_path / "a.mat", {"homo": adjacency(merged, 200), "features": features, "label": labels})
    read = load_graph("file", "", tmp_path / "a.mat")
    assert list(read.relations) == ["homo"] and edge_set(read.relations["homo"]) == edge_set(merged)


def test_mat_has_one_relation_a_matrix(graph, tmp_path):
    save_fraud_mat(tmp_path / "a.mat", graph)
    read = load_graph("file", "", tmp_path / "a.mat")
    assert list(read.relations) == ["upu", "usu"]
    for found, expected in zip(read.relations.values(), graph.relations.values(), strict=True):
        assert edge_set(found) == edge_set(expected)
    assert torch.equal(read.features, graph.features) and torch.equal(read.labels, graph.labels)


def test_pyg_data_and_dictionary(graph, tmp_path):
    from torch_geometric.data import Data

    edges = graph.relations["first"]
    torch.save(Data(x=graph.features, y=graph.labels, edge_index=edges), tmp_path / "a.pt")
    torch.save({"x": graph.features, "y": graph.labels, "edge_index": edges}, tmp_path / "b.pth")
    for name in ("a.pt", "b.pth"):
        read = load_graph("file", "", tmp_path / name)
        assert torch.equal(read.features, graph.features) and torch.equal(read.relations["edge_index"], edges)


def test_weights_of_edges_are_ignored_with_a_warning(graph, tmp_path):
    from torch_geometric.data import Data

    edges = graph.relations["first"]
    parts = {"x": graph.features, "y": graph.labels, "edge_index": edges, "edge_weight": torch.ones(edges.shape[1])}
    torch.save(Data(**parts), tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="edge_weight, which no model here reads"):
        load_graph("file", "", tmp_path / "a.pt")


def test_dgl_graph_with_one_hot_labels(graph, tmp_path, monkeypatch):
    monkeypatch.setenv("DGLBACKEND", "pytorch")
    dgl = pytest.importorskip("dgl", reason="dgl is not installed")
    source, target = graph.relations["first"]
    saved = dgl.graph((source, target), num_nodes=200)
    saved.ndata["feature"] = graph.features.double()
    saved.ndata["label"] = torch.nn.functional.one_hot(graph.labels, 2)
    (tmp_path / "node").mkdir()
    dgl.save_graphs(str(tmp_path / "node" / "tfinance"), [saved])
    read = load_graph("tfinance", tmp_path)
    assert torch.equal(read.features, graph.features) and torch.equal(read.labels, graph.labels)
    assert edge_set(next(iter(read.relations.values()))) == edge_set(graph.relations["first"])
    assert read.variant == "user data saved as tfinance: 200 nodes where table 5 has 39357"


def test_a_file_of_gadbench_has_the_sizes_of_its_table_or_is_the_user_s(graph, tmp_path, monkeypatch):
    """Anomalies are a share of the labelled nodes there."""
    monkeypatch.setenv("DGLBACKEND", "pytorch")
    dgl = pytest.importorskip("dgl", reason="dgl is not installed")
    source, target = graph.relations["first"]
    saved, labelled = dgl.graph((source, target), num_nodes=200), torch.arange(200) >= 20
    saved.ndata.update({"feature": graph.features, "label": graph.labels, "mark": labelled})
    (tmp_path / "node" / "gadbench").mkdir(parents=True)
    dgl.save_graphs(str(tmp_path / "node" / "gadbench" / "elliptic"), [saved])
    assert load_graph("gadbench_elliptic", tmp_path).variant == (
        "user data saved as gadbench/elliptic: 200 nodes where GADBench's table has 203769"
    )
    share = round(100 * float(graph.labels[labelled].double().mean()), 1)
    assert share != round(100 * float(graph.labels.double().mean()), 1)
    sizes = {"nodes": 200, "features": 5, "anomalies": share, "of_labelled": True}
    about = Published("gadbench/elliptic", "", **sizes, variant="theirs")
    monkeypatch.setitem(sources.PUBLISHED, "gadbench_elliptic", about)
    assert load_graph("gadbench_elliptic", tmp_path).variant == "theirs"


@pytest.mark.parametrize("name", ["reddit", "tolokers"])
def test_the_sizes_of_gadbench_s_table_are_those_of_the_data(name, data_root):
    graph = load_graph(name, data_root)
    about = PUBLISHED[f"gadbench_{name}"]
    assert about.differences(graph) == ""


def test_a_damaged_dgl_file_is_an_error(tmp_path):
    pytest.importorskip("dgl", reason="dgl is not installed")
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "tsocial").write_bytes(b"not a graph")
    with pytest.raises(UserError, match="is not a dgl graph file"):
        load_graph("tsocial", tmp_path)


def test_the_first_users_of_amazon_have_no_label(graph, tmp_path, monkeypatch):
    monkeypatch.setitem(sources.PUBLISHED, "amazon", Published("Amazon.mat", "", 200, 1, unlabelled=33))
    save_fraud_mat(tmp_path / "node" / "Amazon.mat", graph)
    labels = load_graph("amazon", tmp_path).labels
    assert (labels[:33] == -1).all() and torch.equal(labels[33:], graph.labels[33:])


def test_a_file_of_the_published_name_is_exact_only_with_the_published_sizes_and_contents(graph, tmp_path, monkeypatch):
    save_fraud_mat(tmp_path / "node" / "YelpChi.mat", graph)
    undirected = len(edge_set(torch.cat(list(graph.relations.values()), 1))) // 2
    monkeypatch.setattr(sources, "PUBLISHED", {})
    right = {"nodes": 200, "edges": undirected, "features": 5, "anomalies": 20.0}

    def variant(**changes) -> str:
        monkeypatch.setitem(sources.PUBLISHED, "yelp", Published("YelpChi.mat", "", **{**right, **changes}))
        return load_graph("yelp", tmp_path).variant

    assert variant() == "exact in its counts, contents not checked"
    for changes, told in (
        ({"edges": undirected + 1}, "edges where table 5 has"),
        ({"features": 6}, "5 features where"),
        ({"anomalies": 3.0}, "20.0 % anomalies where table 5 has 3.0 %"),
        ({"nodes": 201}, "200 nodes where table 5 has 201"),
        ({"anomalies": 20.1, "of_labelled": True, "table": "A"}, "20.0 % anomalies where A has 20.1 %"),
        ({"sha256": "0" * 64}, "other contents than the published file"),
    ):
        with pytest.warns(UserWarning, match="is not the published data set 'yelp'"):
            assert told in variant(**changes) and variant(**changes).startswith("user data saved as YelpChi.mat")


def test_any_file_saved_as_tolokers_is_not_tolokers(graph, tmp_path):
    (tmp_path / "node").mkdir()
    edges = next(iter(graph.relations.values())).T.numpy()
    arrays = {"node_features": graph.features, "node_labels": graph.labels, "edges": edges}
    np.savez(tmp_path / "node" / "tolokers.npz", **arrays)
    with pytest.warns(UserWarning, match="is not the published data set 'tolokers': other contents"):
        assert load_graph("tolokers", tmp_path).variant.startswith("user data")


def test_a_mat_file_of_version_73_says_how_to_save_it(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(400))
    with pytest.raises(UserError, match=r"version 7\.3, which is not read: save it with -v7"):
        load_graph("file", "", tmp_path / "a.mat")


@pytest.mark.parametrize(
    "change", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, lambda x: x.clone().requires_grad_()]
)
def test_sparse_features_and_those_with_gradients_are_features(graph, tmp_path, change):
    from torch_geometric.data import Data

    edges = graph.relations["first"]
    torch.save(Data(x=change(graph.features), y=graph.labels, edge_index=edges), tmp_path / "a.pt")
    assert torch.equal(load_graph("file", "", tmp_path / "a.pt").features, graph.features)


def test_dgl_fetches_a_missing_file(graph, tmp_path, monkeypatch):
    data = pytest.importorskip("dgl.data", reason="dgl is not installed")

    def fetch(raw_dir: str, verbose: bool) -> None:
        save_fraud_mat(Path(raw_dir) / "yelp" / "YelpChi.mat", graph)

    monkeypatch.setattr(data, "FraudYelpDataset", fetch)
    assert torch.equal(load_graph("yelp", tmp_path).features, graph.features)


def test_without_file_and_network_the_error_says_what_goes_where(tmp_path, monkeypatch):
    data = pytest.importorskip("dgl.data", reason="dgl is not installed")

    def offline(raw_dir: str, verbose: bool) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(data, "FraudAmazonDataset", offline)
    with pytest.raises(UserError, match=r"Amazon\.mat in .*/node/, and dgl could not fetch it .*https://data\.dgl\.ai"):
        load_graph("amazon", tmp_path)


@pytest.mark.parametrize(
    "name", ["tfinance", "tsocial", "tolokers", "amazon_upu", "yelp_reviewers", "tsocial_synthetic"]
)
def test_a_missing_file_is_named_with_address_and_folder(name, tmp_path):
    about = sources.PUBLISHED[name]
    with pytest.raises(UserError) as error:
        load_graph(name, tmp_path)
    assert all(part in str(error.value) for part in (about.file, about.address, f"{tmp_path}/node/"))


def test_unknown_source_and_missing_path(tmp_path):
    with pytest.raises(UserError, match=r"data\.source must be one of amazon, yelp"):
        load_graph("cora", tmp_path)
    with pytest.raises(UserError, match=r"data\.path names the graph file"):
        load_graph("file", tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        load_graph("file", tmp_path, tmp_path / "absent.npz")
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(UserError, match="should end in"):
        load_graph("file", tmp_path, tmp_path / "a.csv")


def test_a_missing_key_is_named(tmp_path, graph):
    np.savez(tmp_path / "a.npz", features=graph.features.numpy(), labels=graph.labels.numpy())
    with pytest.raises(UserError, match=r"lacks the key 'edge_index'; Keys: features"):
        load_graph("file", "", tmp_path / "a.npz")
    torch.save({"x": graph.features, "edge_index": graph.relations["first"]}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"lacks the key 'y'"):
        load_graph("file", "", tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.npz", "a.mat", "a.pt"])
def test_a_damaged_file_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x93garbage" * 10)
    with pytest.raises(UserError, match="cannot be read"):
        load_graph("file", "", tmp_path / name)


def test_a_truncated_npz_is_an_error(graph_file):
    graph_file.write_bytes(graph_file.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read"):
        load_graph("file", "", graph_file)


def test_a_hostile_pickle_does_not_execute(tmp_path, graph):
    marker = tmp_path / "executed"
    hostile = np.array([Hostile(marker)], dtype=object)
    save_npz(graph, tmp_path / "a.npz", features=hostile)
    torch.save({"x": Hostile(marker)}, tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Hostile(marker)))
    for name in ("a.npz", "b.pt", "c.pt"):
        with pytest.raises(UserError, match="cannot be read"):
            load_graph("file", "", tmp_path / name)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Hostile(marker)))
    assert marker.exists()  # it would have worked


def test_a_label_that_is_no_whole_number_is_an_error(tmp_path, graph):
    path = save_npz(graph, tmp_path / "a.npz", labels=np.full(200, 0.5))
    with pytest.raises(UserError, match=r"the file has 0\.5"):
        load_graph("file", "", path)


def test_labels_may_be_one_hot_but_not_texts(tmp_path, graph):
    one_hot = torch.nn.functional.one_hot(graph.labels).numpy()
    for dtype in (np.int64, np.float32, np.uint16, bool):
        found = load_graph("file", "", save_npz(graph, tmp_path / "a.npz", labels=one_hot.astype(dtype)))
        assert torch.equal(found.labels, graph.labels)
    with pytest.raises(UserError, match=r"the file has 0\.9"):
        load_graph("file", "", save_npz(graph, tmp_path / "a.npz", labels=np.where(one_hot, 0.9, 0.1)))
    with pytest.raises(UserError, match="has the text 'fraud'"):
        load_graph("file", "", save_npz(graph, tmp_path / "a.npz", labels=np.full(200, b"fraud")))
    texts = np.where(graph.labels == 1, "fraud", "benign")
    with pytest.raises(UserError, match=r"a label is 0, 1 or -1 .*, but the file has the text 'benign'"):
        load_graph("file", "", save_npz(graph, tmp_path / "b.npz", labels=texts))


def test_a_graph_without_features_is_an_error(tmp_path, graph):
    path = save_npz(graph, tmp_path / "a.npz", features=np.zeros((200, 0)))
    with pytest.raises(UserError, match="has no features: save at least one column"):
        check_graph(load_graph("file", "", path))


def test_breast_cancer_is_undirected_and_labelled():
    graph = load_graph("breast_cancer", "", neighbours=5)
    check_graph(graph)
    edges = edge_set(graph.relations["nearest"])
    assert edges == {(b, a) for a, b in edges}
    assert graph.features.shape == (569, 30) and int(graph.labels.sum()) == 212
    degree = torch.bincount(graph.relations["nearest"][0], minlength=569)
    assert degree.min() >= 5 and graph.variant == "embedded"


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "nodes", "features", "anomalies", "edges"),
    [
        ("amazon_upu", 10224, 25, 693, {"upu": 351216}),
        ("yelp_reviewers", 23831, 32, 1217, {"rur": 98630, "rtr": 324742}),
        ("tolokers", 11758, 10, 2566, {"edges": 1038000}),
        ("reddit", 10984, 64, 366, {"edge_index": 168016}),
    ],
)
def test_real_files_have_the_sizes_they_are_known_for(data_root, name, nodes, features, anomalies, edges):
    graph = load_graph(name, data_root)
    check_graph(graph)
    assert graph.variant == sources.PUBLISHED[name].variant
    assert graph.features.shape == (nodes, features) and int(graph.labels.sum()) == anomalies
    assert {key: e.shape[1] for key, e in graph.relations.items()} == edges


def test_files_of_other_byte_orders_are_the_same_graph(tmp_path, graph):
    features, labels, (edges, *_) = graph.features.numpy(), graph.labels.numpy(), graph.relations.values()
    native = {"features": features, "labels": labels, "edge_index": edges.numpy()}
    other = {key: value.astype(value.dtype.newbyteorder(">")) for key, value in native.items()}
    np.savez(tmp_path / "a.npz", **native)
    np.savez(tmp_path / "b.npz", **other)
    a, b = (load_graph("file", "", tmp_path / name) for name in ("a.npz", "b.npz"))
    assert a.sha256() == b.sha256()


@pytest.mark.parametrize("key", ["features", "labels"])
def test_complex_numbers_are_no_features_and_no_labels(tmp_path, graph, key):
    arrays = {"features": graph.features.numpy(), "labels": graph.labels.numpy(), "edge_index": np.zeros((2, 1), int)}
    np.savez(tmp_path / "a.npz", **{**arrays, key: arrays[key] * 1j})
    with pytest.raises(UserError, match="complex numbers"):
        load_graph("file", "", tmp_path / "a.npz")


def test_more_neighbours_than_nodes_are_refused():
    with pytest.raises(UserError, match=r"data\.neighbours=569: there are 569 nodes, so at most 568"):
        load_graph("breast_cancer", "", neighbours=569)
