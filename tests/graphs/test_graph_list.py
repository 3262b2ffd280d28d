"""Graphs of one's own: read as they were saved, refused where they are no graphs."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch_geometric.data import Data

from et.graphs.batch import pack
from et.graphs.data import GraphData
from et.graphs.features import standardized
from et.graphs.graph_list import load_graph_list
from et.runs.identity import resolve
from et.training.run import train
from et.utils.errors import UserError
from tests.runs import weights


def ring(size: int, target: torch.Tensor, features: int = 3, edge_features: int = 0) -> Data:
    """A cycle with features that tell its size."""
    nodes = torch.arange(size)
    edge_index = torch.stack([torch.cat([nodes, nodes.roll(1)]), torch.cat([nodes.roll(1), nodes])])
    x = torch.full((size, features), float(size)) + torch.arange(features)
    attr = torch.rand(2 * size, edge_features) if edge_features else None
    return Data(x=x, edge_index=edge_index, edge_attr=attr, y=target)


def rings(count: int = 40, **kwargs) -> list[Data]:
    return [ring(4 + number % 2, torch.tensor([number % 2]), **kwargs) for number in range(count)]


def alike(target: torch.Tensor) -> list[Data]:
    return [ring(4, target) for _ in range(8)]


def save(content, folder):
    torch.save(content, folder / "mine.pt")
    return folder / "mine.pt"


def test_a_list_is_read_graph_by_graph(tmp_path):
    graphs = rings(6, edge_features=2)
    source = load_graph_list(save(graphs, tmp_path))
    assert source.variant == "user data" and source.split is None and len(source.graphs) == 6
    for number, graph in enumerate(graphs):
        read = source.graphs.select([number])
        assert torch.equal(read.x, graph.x) and torch.equal(read.y, graph.y)
        pairs = dict(zip(map(tuple, graph.edge_index.T.tolist()), graph.edge_attr.tolist(), strict=True))
        assert dict(zip(map(tuple, read.edge_index.T.tolist()), read.edge_attr.tolist(), strict=True)) == pairs


def test_three_lists_are_a_split_and_real_numbers_a_regression(tmp_path):
    graphs = [ring(4 + n % 3, torch.tensor([n / 2])) for n in range(7)]
    source = load_graph_list(save({"train": graphs[:4], "val": graphs[4:5], "test": graphs[5:]}, tmp_path))
    assert {part: numbers.tolist() for part, numbers in source.split.items()} == {
        "train": [0, 1, 2, 3], "val": [4], "test": [5, 6],
    }  # fmt: skip
    assert source.graphs.y.tolist() == [n / 2 for n in range(7)]


def test_graphs_in_several_parts_are_told(tmp_path):
    graphs = [ring(4 + n, torch.tensor([n % 2])) for n in range(6)]
    shared = {"train": graphs[:4], "val": [graphs[4], graphs[1]], "test": [graphs[5], graphs[0]]}
    with pytest.warns(UserWarning, match="train, val, test share 2 graphs"):
        load_graph_list(save(shared, tmp_path))
    changed = [ring(4 + n, torch.tensor([1 - n % 2])) for n in range(6)]  # the same graphs with other targets
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_graph_list(save({"train": graphs[:4], "val": graphs[4:], "test": changed[:2]}, tmp_path))


def test_masks_of_nodes_are_told(tmp_path):
    graph = ring(4, torch.arange(4) % 2)
    graph.train_mask = torch.tensor([True, True, False, False])
    with pytest.warns(UserWarning, match="have train_mask, which are not used: whole graphs are split"):
        load_graph_list(save([graph], tmp_path))


@pytest.mark.parametrize("target", [torch.tensor([[0, 1, 0]]), torch.rand(3, 2)])
def test_several_numbers_for_a_graph_or_a_node_are_refused(tmp_path, target):
    """(1, 3) for three nodes could pass for a target of each."""
    with pytest.raises(UserError, match=r"y of graph 0 .* is of shape \(\d, \d\): save one number"):
        load_graph_list(save([ring(3, target)], tmp_path))


def test_edges_with_features_of_zeros_are_told(tmp_path):
    graphs = rings(20, edge_features=2)
    graphs[0].edge_attr[:3] = 0
    path = save(graphs, tmp_path)
    with pytest.warns(UserWarning, match="3 of 180 edges have features of zeros only"):
        GraphData(None, "file", tmp_path, None, None, None, path=path, num_eigenvectors=2).setup()


def test_graphs_whose_edges_are_all_loops(tmp_path):
    graphs = rings(4, edge_features=2)
    for graph in graphs:
        graph.edge_index = graph.edge_index[:1].repeat(2, 1)
    assert load_graph_list(save(graphs, tmp_path)).graphs.num_edges == 0
    sizes, none = torch.tensor([1]), torch.tensor([0])
    empty = pack(sizes, none, torch.ones(1, 1), torch.empty(2, 0).long(), torch.empty(0, 3), none, "graph")
    assert empty.edge_attr.shape == (0, 3)


def test_one_node_to_train_on_is_shifted_and_not_scaled(tmp_path):
    none = torch.empty(2, 0).long()
    graphs = [Data(x=torch.full((1, 2), value), edge_index=none, y=torch.tensor([0])) for value in (5.0, 6.0)]
    batch = load_graph_list(save(graphs, tmp_path)).graphs
    assert standardized(batch, torch.tensor([0])).x.tolist() == [[0, 0], [1, 1]]


def test_a_target_for_every_node_is_a_node_task(tmp_path):
    source = load_graph_list(save([ring(n, torch.arange(n) % 2) for n in (4, 5)], tmp_path))
    assert source.graphs.level == "node" and source.graphs.y.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]


def test_without_features_the_degrees_are(tmp_path):
    graphs = rings(4)
    for graph in graphs:
        del graph.x
        graph.num_nodes = int(graph.edge_index.max()) + 1
    assert load_graph_list(save(graphs, tmp_path)).graphs.x.unique().tolist() == [2.0]


def test_loops_go_and_repeated_edges_count_once_with_the_sum_of_their_features(tmp_path):
    edges = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 1, 0, 1]])
    graph = Data(x=torch.ones(2, 1), edge_index=edges, edge_attr=torch.arange(5.0), y=torch.tensor(0))
    read = load_graph_list(save([graph], tmp_path)).graphs
    assert read.edge_index.tolist() == [[0, 1], [1, 0]] and read.edge_attr.tolist() == [[2.0], [4.0]]


def test_a_repeated_edge_with_a_type_is_refused(tmp_path):
    """Two edges of type 1 are none of type 2."""
    graphs = rings(12)
    for graph in graphs:
        graph.edge_attr = torch.ones(graph.num_edges, 1, dtype=torch.long)
    path = save(graphs, tmp_path)
    load_graph_list(path, types=True)
    graphs[3].edge_index = torch.cat([graphs[3].edge_index, graphs[3].edge_index[:, :1]], 1)
    graphs[3].edge_attr = torch.ones(graphs[3].num_edges, 1, dtype=torch.long)
    path = save(graphs, tmp_path)
    with pytest.raises(UserError, match=r"graph 3 of .* repeats an edge, and data\.one_hot=true"):
        load_graph_list(path, types=True)
    assert load_graph_list(path).graphs.edge_attr.max() == 2


def test_released_scoring_needs_twelve_graphs(config, tmp_path):
    own = ["task=graphs", "model=gin", "data=graph_list", "protocol=released", "fidelity=released", "name=own"]
    with pytest.raises(UserError, match="has 11 graphs: protocol=released"):
        train(config(*own, f"data.path={save(rings(11), tmp_path)}", "trainer.max_epochs=1", "task.repetitions=1"))


def test_loader_processes_change_nothing(config, tmp_path):
    """Noise and flips are drawn from the same generator as without them, in every epoch."""
    own = ["experiment=demo_graphs", "data=graph_list", f"data.path={save(rings(20), tmp_path)}", "data.batch_size=8"]
    own += [*TINY, "data.folds=4", "trainer.max_epochs=3", "force=true"]
    alone = weights(train(config(*own, "data.num_workers=0")).folder)
    helped = weights(train(config(*own, "data.num_workers=1")).folder)
    assert all(torch.equal(value, helped[name]) for name, value in alone.items())


@pytest.mark.parametrize("setting", ["data.batch_size=0", "data.folds=0", "data.num_workers=-1"])
def test_values_that_the_data_do_not_take_are_told(config, tmp_path, setting):
    with pytest.raises(UserError, match=r"^data: "):
        resolve(config("experiment=demo_graphs", "data=graph_list", f"data.path={save(rings(), tmp_path)}", setting))


def test_a_graph_without_edges_among_graphs_with_edge_features(tmp_path):
    graphs = rings(4, edge_features=2)
    for lone in (torch.empty(0, 2), None):
        graphs[1] = Data(x=torch.ones(1, 3), edge_index=torch.empty(2, 0).long(), edge_attr=lone, y=torch.tensor([1]))
        read = load_graph_list(save(graphs, tmp_path)).graphs
        assert read.edge_attr.shape == (read.num_edges, 2) and read.sizes.tolist() == [4, 1, 4, 5]


def test_the_hash_knows_which_graphs_are_in_which_part(tmp_path):
    graphs = rings(6)
    hashes = {
        load_graph_list(save(content, tmp_path)).sha256
        for content in (
            graphs,
            {"train": graphs[:4], "val": graphs[4:5], "test": graphs[5:]},
            {"train": graphs[:3], "val": graphs[3:5], "test": graphs[5:]},
        )
    }
    assert len(hashes) == 3


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32])
def test_edges_of_any_whole_type_are_read(tmp_path, dtype):
    graphs = rings(6)
    expected = load_graph_list(save(graphs, tmp_path)).sha256
    for graph in graphs:
        graph.edge_index = graph.edge_index.to(dtype)
    assert load_graph_list(save(graphs, tmp_path)).sha256 == expected


@pytest.mark.parametrize(
    "change", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, lambda x: x.requires_grad_(), torch.nn.Parameter]
)
def test_sparse_features_and_those_with_gradients_are_features(tmp_path, change):
    graphs = rings(6)
    expected = load_graph_list(save(graphs, tmp_path)).sha256
    for graph in graphs:
        graph.x = change(graph.x.clone())
    source = load_graph_list(save(graphs, tmp_path))
    assert source.sha256 == expected and not source.graphs.x.requires_grad


def test_graphs_of_old_torch_geometric_are_graphs(tmp_path, monkeypatch):
    """Version 1 kept attributes in the object itself, None where there are none."""
    graphs = rings(6)
    expected = load_graph_list(save(graphs, tmp_path)).sha256
    old = []
    for graph in graphs:
        one = Data.__new__(Data)
        vars(one).update(graph.to_dict(), edge_attr=None, pos=None, face=None, __num_nodes__=graph.num_nodes)
        old.append(one)
    with monkeypatch.context() as patched:
        patched.setattr(Data, "__getstate__", lambda self: vars(self))
        path = save(old, tmp_path)
    assert load_graph_list(path).sha256 == expected


def test_graphs_without_nodes_are_told_and_can_be_dropped(tmp_path):
    graphs = rings(6)
    whole = load_graph_list(save(graphs, tmp_path)).sha256
    empty = Data(x=torch.empty(0, 3), edge_index=torch.empty(2, 0).long(), y=torch.tensor([1]))
    path = save([graphs[0], empty, *graphs[1:], empty], tmp_path)
    with pytest.raises(UserError, match=r"2 of 8 graphs have no nodes, first graph 1: set data\.drop_empty=true"):
        load_graph_list(path)
    source = load_graph_list(path, drop_empty=True)
    assert source.sha256 == whole and source.dropped_empty == 2
    parts = {"train": [empty, *graphs[:4]], "val": graphs[4:5], "test": [graphs[5], empty]}
    split = load_graph_list(save(parts, tmp_path), drop_empty=True).split
    assert [len(split[part]) for part in ("train", "val", "test")] == [4, 1, 1]


def test_small_integers_as_edge_features_do_not_wrap_around(tmp_path):
    edges = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]])
    attr = torch.tensor([[200], [200], [100], [100]], dtype=torch.uint8)
    graph = Data(x=torch.ones(2, 1), edge_index=edges, edge_attr=attr, y=torch.tensor(0))
    assert load_graph_list(save([graph], tmp_path)).graphs.edge_attr.tolist() == [[300.0], [300.0]]


def spoiled(**changes) -> list[Data]:
    graphs = rings(4)
    for key, value in changes.items():
        graphs[2][key] = value
    return graphs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": rings(2)}, "neither a list of graphs nor such lists by train, val, test"),
        ({"train": rings(2), "val": [], "test": rings(2)}, "no graphs in 'val'"),
        ([], "neither a list"),
        (spoiled(y=None), "graph 2 of .* lacks y"),
        (spoiled(x=None), "graph 2 of .* does not say how many nodes it has"),
        (spoiled(x=None, num_nodes=4), "graph 2 of .* lacks x"),
        (spoiled(edge_attr=torch.ones(8, 1)), "graph 0 of .* lacks edge_attr"),
        (spoiled(edge_attr=torch.ones(3, 1)), r"edge_attr of graph 2 .* shape \(3, 1\), and 8 rows"),
        (spoiled(x=torch.ones(4, 2)), "x in .* has 2, 3 columns"),
        (spoiled(edge_index=torch.zeros(8, 2, dtype=torch.long)), r"whole numbers \(2, E\), not torch.int64 \(8, 2\)"),
        (spoiled(y=0), "y of graph 2 of .* is not a tensor but int"),
        ({"train": 1, "val": 2, "test": 3}, "neither a list"),
        ([Data(edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.tensor([0]))], "does not say how many nodes"),
        (spoiled(y=torch.tensor([0, 1])), "graph 0 of .* has 4 nodes and 1 targets"),
        (spoiled(edge_index=torch.tensor([[0], [1]])), "graph 2 of .* without their reverse.*to_undirected"),
        (spoiled(edge_index=torch.tensor([[0, 9], [9, 0]])), "graph 2 of .* names a node outside"),
        (spoiled(other=torch.distributions.Normal(0, 1)), "holds torch.distributions.normal.Normal, and only tensors"),
    ],
)
def test_what_is_no_list_of_graphs_is_told(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load_graph_list(save(content, tmp_path))


def test_a_file_that_is_absent_or_damaged_is_told(tmp_path):
    with pytest.raises(UserError, match=r"data\.path names"):
        load_graph_list(None)
    with pytest.raises(UserError, match="there is no file"):
        load_graph_list(tmp_path / "absent.pt")
    path = save(rings(), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        load_graph_list(path)


TINY = ["model.dim=16", "model.num_heads=2", "model.head_dim=8", "model.num_memories=8", "trainer.max_epochs=2"]


@pytest.mark.parametrize(
    ("graphs", "overrides", "message"),
    [
        (alike(torch.tensor([0.0])), ["data.num_classes=2"], r"set data\.num_classes=1.*are real numbers.*y\.long"),
        (alike(torch.tensor([0.5])), ["data.num_classes=1"], "for a regression save a dictionary"),
        (alike(torch.tensor([0.5])), ["data.num_classes=1", "protocol=released"], "for a regression save a dictionary"),
        (alike(torch.arange(4) % 2), [], "for nodes save a dictionary"),
        (alike(torch.tensor([1])), ["data.num_classes=1"], r"whole numbers.*y\.float"),
        (rings(40), ["data.num_classes=5"], r"says num_classes=5: set data\.num_classes=2"),
        (alike(torch.tensor([1])), ["data.num_classes=2"], "every graph of mine is of class 1"),
        (
            [ring(4, torch.tensor([2 * (n % 2)])) for n in range(40)],
            ["data.num_classes=3"],
            r"labels 0, 2: number its 2 classes 0 \.\. 1 without a gap",
        ),
        (
            [ring(4, torch.tensor([2 * (n % 2) - 1])) for n in range(40)],
            [],
            r"labels -1, 1: number its 2 classes 0 \.\. 1 without a gap",
        ),
        (rings(40), ["data.num_features=9", "data.num_classes=5"], r"set data\.num_features=3 data\.num_classes=2"),
        (alike(torch.tensor([float("nan")])), [], "targets of mine contain NaN"),
        (
            {part: alike(torch.arange(4) % 2) for part in ("train", "val", "test")},
            [],
            r"targets are of nodes.*: set model\.readout=nodes",
        ),
    ],
)
def test_targets_that_do_not_fit_the_task_are_told(config, tmp_path, graphs, overrides, message):
    own = ["data=graph_list", f"data.path={save(graphs, tmp_path)}", *overrides]
    with pytest.raises(UserError, match=message):
        train(config("experiment=demo_graphs", *own, *TINY, "trainer.accelerator=cpu"))


def test_the_demo_trains_on_ones_own_graphs(config, tmp_path):
    own = ["data=graph_list", f"data.path={save(rings(), tmp_path)}", "data.folds=4"]
    outcome = train(config("experiment=demo_graphs", *own, *TINY, "trainer.accelerator=cpu"))
    assert outcome.record["dataset"]["name"] == "mine" and outcome.record["dataset"]["variant"] == "user data"
    assert outcome.record["dataset"]["split"] == {"train": 27, "val": 3, "test": 10}
    stated = train(config("experiment=demo_graphs", *own, "data.num_features=3", *TINY, "trainer.accelerator=cpu"))
    assert stated.skipped and stated.record["run_id"] == outcome.record["run_id"]


def test_a_regression_of_ones_own_trains(config, tmp_path):
    graphs = [ring(4 + n % 3, torch.tensor([n / 2])) for n in range(12)]
    path = save({"train": graphs[:8], "val": graphs[8:10], "test": graphs[10:]}, tmp_path)
    own = ["data=graph_list", f"data.path={path}", "data.num_features=3", "data.num_classes=1"]
    outcome = train(config("experiment=zinc_variant", *own, *TINY, "model.num_blocks=1", "trainer.accelerator=cpu"))
    assert outcome.record["metrics"]["test/mae"] > 0


@pytest.mark.parametrize("key", ["x", "y", "edge_attr"])
def test_complex_numbers_are_refused(tmp_path, key):
    graphs = rings(4)
    for graph in graphs:
        graph.edge_attr = torch.ones(graph.edge_index.shape[1], 1)
        graph[key] = graph[key] * 1j
    with pytest.raises(UserError, match=f"{key} of graph 0 of .* holds complex numbers"):
        load_graph_list(save(graphs, tmp_path))


def test_a_processed_file_of_a_data_set_says_what_to_save(tmp_path):
    graph, slices = rings(1)[0], {"x": torch.tensor([0, 3])}
    for content in ((graph, slices), (graph.to_dict(), slices, Data)):
        with pytest.raises(UserError, match=r"is a processed file .* torch\.save\(list\(dataset\), FILE\)"):
            load_graph_list(save(content, tmp_path))


def test_classes_that_were_saved_as_real_numbers_are_told(tmp_path):
    for values, told in (([0.0, 1.0], True), ([0.5, 1.0], False), ([1.0, 2.0], False)):
        graphs = rings(6)
        for number, graph in enumerate(graphs):
            graph.y = torch.tensor([values[number % 2]])
        path = save({"train": graphs, "val": graphs[:2], "test": graphs[:2]}, tmp_path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            GraphData(None, "file", tmp_path, None, None, None, path=path, num_eigenvectors=2).setup()
        assert any("taken for a regression" in str(one.message) for one in caught) == told
