"""Data sets in TUDataset's form: read as their files have them, refused where these are damaged."""

import stat

import numpy as np
import pytest
import torch

from et.graphs.published import PUBLISHED_TU, PublishedTU
from et.graphs.synthetic import hash_graphs
from et.graphs.tu import load_tu
from et.utils.errors import UserError


def test_tu_features_are_attributes_then_labels_and_edges_are_those_of_the_file(tmp_path, make_tu):
    raw = make_tu(tmp_path, attributes=True)
    source = load_tu("TOY", tmp_path)
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
    graphs = load_tu("TOY", tmp_path).graphs
    degree = torch.bincount(graphs.edge_index[1], minlength=graphs.num_nodes)
    assert torch.equal(graphs.x, degree.float()[:, None])
    assert graphs.edge_attr is None


def test_tu_raw_folder_stays_as_it_was_and_may_be_read_only(tmp_path, make_tu):
    raw = make_tu(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    raw.chmod(stat.S_IRUSR | stat.S_IXUSR)
    load_tu("TOY", tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    raw.chmod(stat.S_IRWXU)


def test_a_folder_with_a_published_name_is_exact_only_with_the_published_contents(tmp_path, make_tu, monkeypatch):
    make_tu(tmp_path, name="MUTAG")
    with pytest.warns(UserWarning, match="MUTAG is not the published data set"):
        source = load_tu("MUTAG", tmp_path)
    assert source.variant.startswith("user data") and "40 graphs where table 8 has 188" in source.variant
    graphs = source.graphs
    sizes = 40, round(graphs.num_nodes / 40, 2), round(graphs.num_edges / 80, 2), 3
    for digest, variant in (
        (hash_graphs(graphs), "exact"),
        (None, "exact in its counts, contents not checked"),
    ):
        monkeypatch.setitem(PUBLISHED_TU, "MUTAG", PublishedTU(*sizes, digest))
        assert load_tu("MUTAG", tmp_path).variant == variant
    monkeypatch.setitem(PUBLISHED_TU, "MUTAG", PublishedTU(*sizes, "0" * 64))
    with pytest.warns(UserWarning):
        assert load_tu("MUTAG", tmp_path).variant.endswith("as large as the published data set, with other contents")


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", "\r\n"])
def test_the_last_line_counts_whatever_it_ends_in(tmp_path, make_tu, ending):
    raw = make_tu(tmp_path, attributes=True)
    whole = load_tu("TOY", tmp_path).graphs
    for file in raw.iterdir():
        file.write_bytes(file.read_bytes().rstrip() + ending.encode())
    assert hash_graphs(load_tu("TOY", tmp_path).graphs) == hash_graphs(whole)


def test_the_graphs_are_those_that_torch_geometric_reads(tmp_path, make_tu):
    from torch_geometric.datasets import TUDataset

    make_tu(tmp_path, attributes=True)
    found = load_tu("TOY", tmp_path).graphs
    for number, graph in enumerate(TUDataset(str(tmp_path / "tu"), "TOY", use_node_attr=True, use_edge_attr=True)):
        read = found.select([number])
        assert torch.equal(read.x, graph.x) and torch.equal(read.edge_index, graph.edge_index)
        assert torch.equal(read.edge_attr, graph.edge_attr) and read.y.item() == graph.y.item()


def test_attributes_beside_a_large_offset_stay_apart(tmp_path, make_tu):
    raw = make_tu(tmp_path, node_labels=False)
    nodes = len((raw / "TOY_graph_indicator.txt").read_text().split())
    seconds = 1.7e9 + np.arange(nodes) % 40
    (raw / "TOY_node_attributes.txt").write_text("\n".join(f"{second:.0f}" for second in seconds))
    assert np.array_equal(load_tu("TOY", tmp_path).graphs.x[:, 0].numpy(), seconds)


def test_graphs_without_nodes_are_told_and_can_be_dropped(tmp_path, make_tu):
    raw = make_tu(tmp_path)
    whole = load_tu("TOY", tmp_path).graphs
    labels = (raw / "TOY_graph_labels.txt").read_text().split()
    indicator = [int(line) for line in (raw / "TOY_graph_indicator.txt").read_text().split()]
    labels = [*labels[:5], "2", *labels[5:], "1"]  # graph 6 and the last one are empty
    (raw / "TOY_graph_labels.txt").write_text("\n".join(labels))
    (raw / "TOY_graph_indicator.txt").write_text("\n".join(str(g + (g > 5)) for g in indicator))
    with pytest.raises(UserError, match=r"2 of 42 graphs have a label and no nodes, first graph 6.*drop_empty=true"):
        load_tu("TOY", tmp_path)
    source = load_tu("TOY", tmp_path, drop_empty=True)
    assert source.dropped_empty == 2 and hash_graphs(source.graphs) == hash_graphs(whole)


@pytest.mark.parametrize("kind", ["A", "graph_indicator", "graph_labels"])
def test_tu_missing_file_is_named_with_its_address(tmp_path, make_tu, kind):
    (make_tu(tmp_path) / f"TOY_{kind}.txt").unlink()
    with pytest.raises(UserError, match=rf"TOY_{kind}\.txt.*graphkerneldatasets/TOY\.zip"):
        load_tu("TOY", tmp_path)


KINDS = ("A", "graph_indicator", "graph_labels", "node_labels", "edge_labels", "node_attributes")
DAMAGES = {
    "half": lambda text: "".join(text.splitlines(keepends=True)[: text.count("\n") // 2]),
    "empty": lambda text: "",
    "within a line": lambda text: text[: text.rfind(",") + 1],
    "a column": lambda text: text[: text.rfind(",")] + "\n",
    "a blank line": lambda text: text.replace("\n", "\n\n", 1),
    "text": lambda text: text.replace("1", "one", 1),
    "a fraction": lambda text: text.replace("1", "1.5", 1),
    "a huge label": lambda text: text.replace("1", "1000000000", 1),
    "a number too long": lambda text: text.replace("1", "1" * 21, 1),
}


@pytest.mark.parametrize(
    "kind, how",
    [
        *((kind, how) for kind in KINDS for how in ("half", "empty", "text")),
        *((kind, how) for kind in ("A", "node_attributes") for how in ("within a line", "a column")),
        *((kind, "a number too long") for kind in KINDS[:-1]),
        *(("node_labels", how) for how in ("a fraction", "a huge label", "a blank line")),
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
        load_tu("TOY", tmp_path)


@pytest.mark.parametrize("kind", ["A", "node_labels"])
def test_tu_folder_in_the_place_of_a_file_is_told(tmp_path, make_tu, kind):
    path = make_tu(tmp_path) / f"TOY_{kind}.txt"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=rf"TOY_{kind}\.txt cannot be read \(Is a directory\)"):
        load_tu("TOY", tmp_path)


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("A", lambda lines: ["0, 1", "1, 0", *lines], r"line 1 of TOY_A\.txt names node 0, there are nodes 1 \.\. "),
        ("A", lambda lines: [*lines, "1, 999", "999, 1"], r"TOY_A\.txt names node 999, there are nodes 1 \.\. "),
        ("A", lambda lines: [f"{line}, 1" for line in lines], r"TOY_A\.txt has 3 numbers a line where 2 belong"),
        ("graph_indicator", lambda lines: [str(int(line) - 1) for line in lines], "names graph 0, they count from 1"),
        ("graph_indicator", lambda lines: [str(int(line) + 1) for line in lines], "has 40 graphs, nodes name 41"),
        ("graph_indicator", lambda lines: [f"{line}, 1" for line in lines], "indicator.txt has 2 numbers a line"),
        ("graph_labels", lambda lines: [f"{line}, 1" for line in lines], "labels.txt has 2 numbers a line"),
    ],
)
def test_tu_contradiction_is_told_with_its_numbers(tmp_path, make_tu, kind, change, message):
    path = make_tu(tmp_path, edge_labels=False) / f"TOY_{kind}.txt"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=message):
        load_tu("TOY", tmp_path)


def test_tu_edges_across_graphs_are_refused(tmp_path, make_tu):
    raw = make_tu(tmp_path / "across", edge_labels=False)
    (raw / "TOY_A.txt").open("a").write("1, 30\n30, 1\n")
    with pytest.raises(UserError, match="two different graphs"):
        load_tu("TOY", tmp_path / "across")


def test_tu_graphs_without_edges_are_graphs(tmp_path, make_tu):
    raw = make_tu(tmp_path, edge_labels=False, num_graphs=4)
    nodes = (raw / "TOY_graph_indicator.txt").read_text().split()
    last = {str(1 + i) for i, graph in enumerate(nodes) if graph in ("2", "4")}  # one inside, one at the end
    kept = [line for line in (raw / "TOY_A.txt").read_text().splitlines() if line.split(",")[0] not in last]
    (raw / "TOY_A.txt").write_text("\n".join(kept) + "\n")
    graphs = load_tu("TOY", tmp_path).graphs
    assert len(graphs) == 4
    assert [count > 0 for count in graphs.edge_ptr.diff().tolist()] == [True, False, True, False]


@pytest.mark.parametrize("content", ["", "\n"])
def test_tu_data_set_without_any_edge_is_told_where_such_graphs_go(tmp_path, make_tu, content):
    raw = make_tu(tmp_path, edge_labels=False)
    (raw / "TOY_A.txt").write_text(content)
    with pytest.raises(UserError, match=r"TOY_A\.txt has no edges.*data=graph_list.*fetch them again"):
        load_tu("TOY", tmp_path)


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
def test_real_data_agrees_with_table_8(data_root, name, graphs, nodes, edges, features):
    source = load_tu(name, data_root)
    found = source.graphs
    assert source.variant == "exact" and len(found) == graphs and found.x.shape[1] == features
    assert found.num_nodes / graphs == pytest.approx(nodes, abs=0.006)
    assert found.num_edges / 2 / graphs == pytest.approx(edges, abs=0.006)


@pytest.mark.data
@pytest.mark.slow
def test_dd_agrees_with_table_8_and_is_not_truncated(data_root):
    found = load_tu("DD", data_root).graphs
    assert len(found) == 1178 and found.x.shape[1] == 89
    assert int((found.x.sum(0) > 0).sum()) == 82  # of the labels 1 .. 89 that many occur
    assert found.num_nodes / 1178 == pytest.approx(284.32, abs=0.006)
    assert found.num_edges / 2 / 1178 == pytest.approx(715.66, abs=0.006)
    assert int(found.sizes.max()) == 5748
