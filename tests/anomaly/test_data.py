from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import reverse_cuthill_mckee as scipy_order

from et.anomaly.aggregates import neighbour_features
from et.anomaly.batch import SubgraphSamples, disjoint_union, induced_topology
from et.anomaly.data import NodeDataModule
from et.anomaly.graph import reverse_cuthill_mckee_order
from et.core import EdgeTopology
from et.utils.errors import UserError
from et.utils.features import piecewise_linear
from tests.anomaly.conftest import make_graph, save_npz


def module(path, **changes) -> NodeDataModule:
    data = NodeDataModule("file", "", **{"num_nodes": 200, "num_features": 5, "path": path, **changes})
    data.setup()
    return data


def pairs(topology: EdgeTopology, nodes: torch.Tensor | None = None) -> list[tuple[int, int]]:
    """The edges, in the ids ``nodes`` of their ends."""
    ids = range(topology.num_nodes) if nodes is None else nodes.tolist()
    edges = zip(topology.edges.key.tolist(), topology.edges.query.tolist(), strict=True)
    return sorted((ids[key], ids[query]) for key, query in edges)


def test_the_batch_holds_the_graph_and_its_split(graph, graph_file):
    whole = module(graph_file).whole
    assert whole.nodes.sort().values.tolist() == list(range(200))
    assert torch.equal(whole.features, graph.features[whole.nodes])
    assert torch.equal(whole.labels, graph.labels[whole.nodes])
    ids = torch.cat([whole.train, whole.val, whole.test])
    assert ids.sort().values.tolist() == list(range(200))
    train = whole.labels[whole.train]
    assert whole.anomaly_weight == pytest.approx(float((train == 0).sum() / (train == 1).sum()))


@pytest.mark.parametrize(
    ("fidelity", "merge", "self_loops", "repeated"),
    [("paper", True, False, False), ("paper", False, False, False), ("released", True, True, True),
     ("released", False, False, True)],
)  # fmt: skip
def test_fidelity_decides_what_a_neighbour_is(graph, graph_file, fidelity, merge, self_loops, repeated):
    data = module(graph_file, fidelity=fidelity, merge=merge, num_relations=1 if merge else 2)
    edges = [pairs(topology, data.whole.nodes) for topology in data.whole.topologies]
    loops = [(i, i) for i in range(200)]
    given = [list(map(tuple, e.T.tolist())) for e in graph.relations.values()]
    given = [given[0] + given[1]] if merge else given
    expected = [sorted((e if repeated else list(set(e))) + loops * self_loops) for e in given]
    assert edges == expected
    assert (data.describe()["self_loops"], data.describe()["repeated_edges"]) == (self_loops, repeated)


@pytest.mark.parametrize(
    ("fidelity", "merge", "order"),
    [("paper", False, ["rur", "rsr"]), ("released", False, ["rsr", "rur"]), ("released", True, ["merged"])],
)
def test_relations_stand_in_the_order_of_their_names_under_released(graph, tmp_path, fidelity, merge, order):
    first, second = graph.relations.values()
    path = save_npz(replace(graph, relations={"rur": first, "rsr": second}), tmp_path / "named.npz")
    data = module(path, fidelity=fidelity, merge=merge, num_relations=len(order))
    assert list(data.describe()["directed_edges"]) == order
    counts = [topology.edges.key.numel() for topology in data.whole.topologies]
    assert counts == list(data.describe()["directed_edges"].values())


def test_neighbours_stand_near_each_other():
    """Two communities whose members alternate in the file, one of them with edges one way only, and lone nodes."""
    rng = np.random.default_rng(0)
    first, second = 2 * rng.integers(0, 50, (2, 400)), 2 * rng.integers(0, 50, (2, 400)) + 1
    nodes = reverse_cuthill_mckee_order(
        [torch.from_numpy(np.concatenate([first, first[::-1]], 1)), torch.from_numpy(second)], 103
    )
    assert nodes.sort().values.tolist() == list(range(103))
    kinds = (nodes[nodes < 100] % 2).diff().abs().sum()
    assert kinds == 1  # the one community, then the other


def test_nodes_of_equal_degree_keep_their_order():
    """An unstable sort, as scipy's function has it, would order them by the CPU's instruction set."""
    pairs_of_nodes = torch.arange(2000).view(-1, 2).T
    edges = torch.cat([pairs_of_nodes, pairs_of_nodes.flip(0)], dim=1)
    assert reverse_cuthill_mckee_order([edges], 2100).flip(0).tolist() == [*range(2000, 2100), *range(2000)]


def test_the_order_is_scipys_where_no_start_is_a_tie():
    """A connected graph with one node of the lowest degree."""
    rng = np.random.default_rng(0)
    ring, extra = np.stack([np.arange(299), (np.arange(299) + 1) % 299]), rng.integers(0, 299, (2, 600))
    ends = np.concatenate([ring, extra[:, extra[0] != extra[1]], [[299], [0]]], axis=1)
    edges = np.unique(np.concatenate([ends, ends[::-1]], axis=1), axis=1)
    graph = csr_matrix((np.ones(edges.shape[1]), tuple(edges)), (300, 300))
    expected = scipy_order(graph, symmetric_mode=True)
    assert reverse_cuthill_mckee_order([torch.from_numpy(edges)], 300).tolist() == expected.tolist()


def test_explicit_options_win_over_fidelity(graph_file):
    data = module(graph_file, fidelity="released", self_loops=False, repeated_edges=False)
    found = pairs(data.whole.topologies[0])
    assert len(found) == len(set(found)) and all(a != b for a, b in found)


@pytest.mark.parametrize("how", ["train", "all"])
def test_standardisation_uses_the_nodes_it_names(graph_file, graph, how):
    whole = module(graph_file, standardize=how).whole
    known = whole.features[whole.train] if how == "train" else whole.features
    torch.testing.assert_close(known.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(known.std(0, correction=0), torch.ones(5), atol=1e-5, rtol=0)
    # Features of other nodes play no part when fitted on the training nodes.
    if how == "train":
        features = graph.features[whole.nodes]
        mean, std = features[whole.train].mean(0), features[whole.train].std(0, correction=0)
        torch.testing.assert_close(whole.features, (features - mean) / std, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scaling", ["moments", "quantiles"])
def test_a_constant_feature_becomes_zero(graph, tmp_path, scaling):
    features = graph.features.clone()
    features[:, 1] = 3.7
    path = save_npz(graph, tmp_path / "a.npz", features=features.numpy())
    assert (module(path, standardize="train", scaling=scaling).whole.features[:, 1] == 0).all()


@pytest.mark.parametrize("how", ["train", "all"])
def test_quantiles_make_long_tails_normal(graph, tmp_path, how):
    """Only the order of the values counts, and over the nodes it is fitted on the result is normally distributed."""
    plain = module(save_npz(graph, tmp_path / "a.npz"), standardize=how, scaling="quantiles").whole
    tailed = save_npz(graph, tmp_path / "b.npz", features=np.exp(3 * graph.features.numpy().astype(np.float64)))
    stretched = module(tailed, standardize=how, scaling="quantiles").whole
    known = plain.features[plain.train if how == "train" else plain.nodes]
    assert plain.features.abs().max() <= 3
    assert known.mean(0).abs().max() < 0.05 and (known.std(0) - 1).abs().max() < 0.1
    ids = plain.train if how == "train" else plain.nodes
    torch.testing.assert_close(stretched.features[ids], known, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_features": 6}, r"set data\.num_features=5"),
        ({"num_nodes": 1, "num_features": 2}, r"set data\.num_nodes=200 data\.num_features=5"),
        ({"merge": False}, r"set data\.num_relations=2"),
        ({"standardize": "yes"}, r"data\.standardize must be"),
        ({"scaling": "ranks"}, r"data\.scaling must be"),
        ({"sample_ratio": 1.5}, r"data\.sample_ratio must lie"),
        ({"sample_ratio": 0.5, "inductive": True}, r"data\.sample_ratio=null"),
        ({"standardize": "all", "inductive": True}, r"data\.standardize=all scales by test nodes"),
        ({"protocol": "released", "inductive": True}, "set protocol=held_out"),
        ({"seed": -1}, "seeds of splits start at 0"),
        ({"split": "mask"}, r"data\.split must be drawn or masks"),
        ({"train_ratio": 0.001}, r"train_ratio"),
    ],
)
def test_wrong_settings_say_what_to_set(graph_file, changes, message):
    with pytest.raises(UserError, match=message):
        module(graph_file, **changes)


def test_sizes_that_are_not_given_are_found(graph_file):
    data = module(graph_file, num_nodes=None, num_features=None, num_relations=None, merge=False)
    assert data.counts() == {"num_nodes": 200, "num_features": 5, "num_relations": 2}
    data = module(graph_file, num_features=None, drop_features=[0, 3])
    assert data.counts()["num_features"] == 3


def test_columns_can_be_left_out(graph, graph_file):
    data = module(graph_file, num_features=None, drop_features=[0, 3])
    assert torch.equal(data.whole.features, graph.features[data.whole.nodes][:, [1, 2, 4]])
    assert data.describe()["dropped_features"] == [0, 3] and data.describe()["num_features"] == 3
    for wrong in ([5], [-1], ["a"], [0, 1, 2, 3, 4]):
        with pytest.raises(UserError, match=r"must name some of the columns 0 \.\. 4"):
            module(graph_file, num_features=None, drop_features=wrong)


def test_inductive_training_sees_the_training_nodes_alone(graph_file):
    data = module(graph_file, inductive=True)
    whole, ids = data.whole, lambda batch, part: set(batch.nodes[getattr(batch, part)].tolist())
    train, val, test = (
        next(iter(make())) for make in (data.train_dataloader, data.val_dataloader, data.test_dataloader)
    )
    assert set(train.nodes.tolist()) == ids(whole, "train") == ids(train, "train")
    assert set(val.nodes.tolist()) == ids(whole, "train") | ids(whole, "val")
    assert ids(val, "val") == ids(whole, "val") and test is whole
    inside = set(train.nodes.tolist())
    expected = [(a, b) for a, b in pairs(whole.topologies[0], whole.nodes) if a in inside and b in inside]
    assert pairs(train.topologies[0], train.nodes) == expected


def test_one_way_edges_are_refused_or_mirrored(graph, tmp_path):
    path = save_npz(graph, tmp_path / "a.npz", edge_index_first=np.array([[0, 1, 2], [1, 0, 1]]))
    with pytest.raises(UserError, match="relation 'first' should be undirected"):
        module(path)
    kept = module(path, one_way_edges="keep", merge=False, num_relations=2)
    assert pairs(kept.whole.topologies[0], kept.whole.nodes) == [(0, 1), (1, 0), (2, 1)]
    mirrored = module(path, one_way_edges="mirror", merge=False, num_relations=2)
    assert pairs(mirrored.whole.topologies[0], mirrored.whole.nodes) == [(0, 1), (1, 0), (1, 2), (2, 1)]


def test_description_names_data_and_split(graph_file, graph):
    first, second = module(graph_file).describe(), module(graph_file, seed=1).describe()
    assert first["sha256"] == second["sha256"] == graph.sha256()
    assert first["split_sha256"] != second["split_sha256"]
    assert (first["train_nodes"], first["val_nodes"], first["test_nodes"]) == (80, 40, 80)
    assert first["name"] == "small" and first["variant"] == "user data" and first["anomaly_ratio"] == 0.2


@pytest.mark.parametrize("seed", range(3))
def test_induced_topology_is_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    edge_index = torch.from_numpy(rng.integers(0, 40, (2, 300)))
    nodes = torch.from_numpy(rng.permutation(40)[:15])
    place = {int(node): i for i, node in enumerate(nodes)}
    expected = sorted((place[a], place[b]) for a, b in edge_index.T.tolist() if a in place and b in place)
    found = induced_topology(EdgeTopology(edge_index, 40).edges, nodes)
    assert pairs(found) == expected and found.num_nodes == 15


def test_induced_topology_of_isolated_nodes_is_empty():
    edges = EdgeTopology(torch.tensor([[0, 1], [1, 0]]), 5).edges
    assert induced_topology(edges, torch.tensor([3, 4])).num_edges == 0


class TestSubgraphSamples:
    def samples(self, path, ratio=0.25, seed=0):
        data = module(path, sample_ratio=ratio)
        return data.whole, SubgraphSamples(data.whole, ratio, seed)

    def test_a_sample_is_the_same_share_of_every_part(self, graph_file):
        whole, samples = self.samples(graph_file)
        batch = samples[0, 0]
        for name, size in (("train", 20), ("val", 10), ("test", 20)):
            ids = batch.nodes[getattr(batch, name)]
            assert len(ids) == size == len(set(ids.tolist()))
            assert set(ids.tolist()) <= set(whole.nodes[getattr(whole, name)].tolist())
        place = whole.nodes.argsort()[batch.nodes]
        assert torch.equal(batch.features, whole.features[place])
        assert torch.equal(batch.labels, whole.labels[place])
        assert batch.anomaly_weight == whole.anomaly_weight

    def test_its_edges_are_those_among_its_nodes(self, graph_file):
        whole, samples = self.samples(graph_file)
        batch = samples[0, 0]
        inside = set(batch.nodes.tolist())
        expected = [(a, b) for a, b in pairs(whole.topologies[0], whole.nodes) if a in inside and b in inside]
        assert pairs(batch.topologies[0], batch.nodes) == expected

    def test_it_depends_on_seed_and_epoch_alone(self, graph_file):
        _, samples = self.samples(graph_file)
        _, again = self.samples(graph_file)
        _, other = self.samples(graph_file, seed=1)
        first = samples[3, 0].nodes
        assert torch.equal(first, again[3, 0].nodes)
        assert not torch.equal(first, samples[4, 0].nodes) and not torch.equal(first, other[3, 0].nodes)

    def test_the_loader_draws_anew_each_epoch_and_validates_on_the_whole(self, graph_file):
        data = module(graph_file, sample_ratio=0.25)
        loader = data.train_dataloader()
        drawn = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            drawn += [batch.nodes for batch in loader]
        assert len(drawn) == 2 and not torch.equal(drawn[0], drawn[1])
        assert [len(batch.nodes) for batch in data.val_dataloader()] == [200]


def test_without_sampling_every_loader_gives_the_whole_graph(graph_file):
    data = module(graph_file)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert [batch is data.whole for batch in loader] == [True]


def test_the_whole_graph_is_moved_once_though_loaders_keep_it_where_it_was(graph_file):
    data, device = module(graph_file), torch.device("meta")
    loaders = data.train_dataloader(), data.val_dataloader()
    with torch.inference_mode():  # a validation that comes first
        first = data.transfer_batch_to_device(data.whole, device, 0)
    assert first.features.device.type == "meta" and not first.features.is_inference()
    for _ in range(2):  # epochs
        for loader in loaders:
            assert [data.transfer_batch_to_device(batch, device, 0) is first for batch in loader] == [True]
    assert data.transfer_batch_to_device(first, device, 0) is first
    assert data.transfer_batch_to_device(data.whole, torch.device("cpu"), 0) is data.whole, "with its sorted edges"
    data.teardown("fit")
    assert data.transfer_batch_to_device(data.whole, device, 0) is not first, "its memory is given back"


def test_a_graph_with_one_relation_needs_no_name(tmp_path):
    graph = make_graph()
    np.savez(
        tmp_path / "a.npz",
        features=graph.features.numpy(),
        labels=graph.labels.numpy(),
        edge_index=graph.relations["first"].numpy(),
    )
    assert module(tmp_path / "a.npz").describe()["directed_edges"]["merged"] > 0


def test_missing_names_the_file_and_where_it_is_from(tmp_path):
    data = NodeDataModule("tolokers", tmp_path, num_nodes=11758, num_features=10)
    (message,) = data.missing()
    assert str(tmp_path / "node" / "tolokers.npz") in message and "heterophilous-graphs" in message
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "tolokers.npz").touch()
    assert data.missing() == []
    assert NodeDataModule("breast_cancer", tmp_path, num_nodes=569, num_features=30).missing() == []
    yelp = NodeDataModule("yelp", tmp_path, num_nodes=45954, num_features=32)
    assert yelp.missing()
    (tmp_path / "node" / "yelp").mkdir()  # where dgl puts what it fetches
    (tmp_path / "node" / "yelp" / "YelpChi.mat").touch()
    assert yelp.missing() == []


class TestSeveralSubgraphs:
    def test_joined_they_are_what_they_were_apart(self, graph_file):
        samples = SubgraphSamples(module(graph_file, sample_ratio=0.25).whole, 0.25, seed=0, count=2)
        first, second = samples[0, 0], samples[0, 1]
        both, count = disjoint_union([first, second]), len(first.labels)
        assert torch.equal(both.nodes, torch.cat([first.nodes, second.nodes]))
        assert torch.equal(both.features[count:], second.features)
        expected = [*pairs(first.topologies[0]), *((a + count, b + count) for a, b in pairs(second.topologies[0]))]
        assert sorted(pairs(both.topologies[0])) == sorted(expected)
        for part in ("train", "val", "test"):
            apart = [*getattr(first, part).tolist(), *(getattr(second, part) + count).tolist()]
            assert getattr(both, part).tolist() == apart

    def test_processes_share_them_out(self, graph_file):
        data = module(graph_file, sample_ratio=0.25, subgraphs=2)
        (alone,) = data.train_dataloader()
        nodes = []
        for rank in range(2):
            with (
                patch("et.anomaly.data.rank_and_world", return_value=(rank, 2)),
                patch("et.training.sampler.rank_and_world", return_value=(rank, 2)),
            ):
                (batch,) = data.train_dataloader()
            nodes.append(batch.nodes)
        assert torch.equal(torch.cat(nodes), alone.nodes)

    @pytest.mark.parametrize(
        "wrong", ({}, {"sample_ratio": 0.25}, {"sample_ratio": 0.25, "subgraphs": 2, "protocol": "released"})
    )
    def test_what_processes_cannot_share_is_refused(self, graph_file, wrong):
        data = module(graph_file, **wrong)
        with patch("et.anomaly.data.rank_and_world", return_value=(0, 2)), pytest.raises(UserError, match="subgraphs"):
            data.train_dataloader()


@pytest.mark.slow
def test_two_processes_train_as_one_on_two_subgraphs(small_config, forked_processes, tmp_path):
    from et.training.run import train

    settings = (
        "model.head_dim=8", "model.num_memories=8", "model.steps=1", "trainer.max_epochs=2", "data.sample_ratio=0.5",
        "+data.subgraphs=2", "model.dropout=0", "callbacks.progress=false",
    )  # fmt: skip
    alone = train(small_config("amazon_upu_40pct", *settings, f"paths.runs={tmp_path}/alone"))
    pair = train(small_config("amazon_upu_40pct", *settings, "trainer.devices=2", "trainer.strategy=ddp"))
    assert pair.record["run_id"] == alone.record["run_id"] and pair.record["device"].startswith("2 x")
    saved = [torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (alone, pair)]
    for name, value in saved[0].items():
        assert torch.allclose(value, saved[1][name], rtol=1e-3, atol=1e-5), name


def test_counts_that_are_left_open_are_those_of_the_file(graph_file):
    found = {"num_nodes": 200, "num_features": 5, "num_relations": 2}
    data = module(graph_file, **dict.fromkeys(found), merge=False)
    assert data.counts() == found and len(data.whole.topologies) == 2
    with pytest.raises(UserError, match=r"set data\.num_nodes=200 data\.num_features=5 data\.num_relations=2"):
        module(graph_file, num_nodes=9, num_features=9, num_relations=9, merge=False)


@pytest.mark.parametrize("name", ["num_nodes", "num_features", "num_relations", "neighbours", "subgraphs"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_that_are_none_are_refused_by_name(graph_file, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a whole number of at least 1, not {value}"):
        module(graph_file, **{name: value})


@pytest.mark.parametrize("scaling", ["moments", "quantiles"])
@pytest.mark.parametrize("how", ["train", "all"])
def test_a_feature_beside_a_large_offset_is_standardised_like_the_feature_alone(tmp_path, graph, how, scaling):
    near, far = (
        module(save_npz(graph, tmp_path / "a.npz", features=graph.features.double().numpy() + offset),
               standardize=how, scaling=scaling)
        for offset in (0, 1.7e9)
    )  # fmt: skip
    assert far.whole.features.dtype == torch.float32
    assert torch.allclose(near.whole.features, far.whole.features, atol=1e-3)


@pytest.mark.parametrize(("scale", "offset"), [(1e-15, 0), (1e3, 1e15), (1e15, 0)])
def test_the_unit_of_a_feature_does_not_matter(tmp_path, graph, scale, offset):
    """A column of tiny numbers, or one beside a huge offset, varies like any other."""
    values = graph.features.double().numpy()
    plain, other = (
        module(save_npz(graph, tmp_path / name, features=features), standardize="train").whole.features
        for name, features in (("a.npz", values), ("b.npz", values * scale + offset))
    )
    assert torch.allclose(plain, other, atol=2e-3)


def test_a_large_offset_is_told_where_nothing_is_standardised(tmp_path, graph):
    path = save_npz(graph, tmp_path / "a.npz", features=graph.features.double().numpy() + 1.7e9)
    with pytest.warns(UserWarning, match=r"float32 loses the variation .*data\.standardize"):
        module(path)


def test_few_anomalies_are_told_and_recorded(tmp_path, graph, graph_file):
    labels = np.zeros(200, np.int64)
    labels[:10] = 1
    with pytest.warns(UserWarning, match="test/auc and test/f1_macro are measured on 4 anomalous nodes"):
        data = module(save_npz(graph, tmp_path / "a.npz", labels=labels))
    assert any("4 anomalous nodes: each of them is worth 0.25 of an AUC" in w for w in data.describe()["warnings"])
    assert "warnings" not in module(save_npz(graph, tmp_path / "b.npz", labels=np.arange(200) % 2)).describe()


@pytest.mark.parametrize("merge", [True, False])
def test_means_over_neighbours_and_their_encoding_are_counted_and_fitted_on_the_training_nodes(graph, tmp_path, merge):
    path = save_npz(graph, tmp_path / "graph.npz")
    options = {"merge": merge, "num_relations": None, "num_features": None}
    plain = module(path, **options)
    wide = module(path, **options, neighbour_hops=2)
    encoded = module(path, **options, neighbour_hops=2, encoding_bins=4)
    x, topologies = plain.whole.features, plain.whole.topologies
    expected = neighbour_features(x, topologies, 2, degrees=True)
    torch.testing.assert_close(wide.whole.features, expected)
    F, R = x.shape[1], len(topologies)
    assert encoded.counts()["num_features"] == encoded.whole.features.shape[1] == (F * (1 + 2 * R) + R) * 5
    codes = piecewise_linear(expected, expected[plain.whole.train], 4)
    torch.testing.assert_close(encoded.whole.features, torch.cat([expected, codes], 1))


def test_hops_may_differ_between_relations(graph, tmp_path):
    path = save_npz(graph, tmp_path / "graph.npz")
    options = {"merge": False, "num_relations": None, "num_features": None}
    plain = module(path, **options)
    x, topologies, F = plain.whole.features, plain.whole.topologies, plain.whole.features.shape[1]
    second = neighbour_features(x, topologies[1:], 2)[:, F:]
    data = module(path, **options, neighbour_hops=[0, 2])
    assert torch.equal(data.whole.features[:, F:-2], second)
    assert data.counts()["num_features"] == data.whole.features.shape[1] == 3 * F + 2
    assert torch.equal(module(path, **options, neighbour_hops=[1, 1]).whole.features,
                       module(path, **options, neighbour_hops=1).whole.features)  # fmt: skip
    with pytest.raises(UserError, match=r"neighbour_hops=\[1\] has 1 numbers for 2 relation"):
        module(path, **options, neighbour_hops=[1])
    for wrong in ([1, -1], [], "12", 1.5, [1.5, 0], None):
        with pytest.raises(ValueError, match="neighbour_hops must be a whole number"):
            module(path, **options, neighbour_hops=wrong)


def test_hops_go_by_the_order_of_the_file_where_fidelity_sorts_the_relations(graph, tmp_path):
    names = ("b", "a")  # released: a, b
    relations = dict(zip(names, graph.relations.values(), strict=True))
    path = save_npz(replace(graph, relations=relations), tmp_path / "graph.npz")
    options = {"merge": False, "num_relations": 2, "num_features": None, "repeated_edges": False}
    in_file, by_name = (module(path, **options, fidelity=f, neighbour_hops=[1, 0]) for f in ("paper", "released"))
    assert list(in_file.describe()["directed_edges"]) != list(by_name.describe()["directed_edges"])
    means = [data.whole.features[data.whole.nodes.argsort(), :-2] for data in (in_file, by_name)]
    torch.testing.assert_close(*means)


def test_components_of_a_relation_stay_in_one_part(graph, tmp_path):
    threes = torch.arange(199)[torch.arange(199) % 3 != 2]
    cliques = torch.stack([torch.cat([threes, threes + 1]), torch.cat([threes + 1, threes])])
    first = next(iter(graph.relations))
    path = save_npz(replace(graph, relations={**graph.relations, first: cliques}), tmp_path / "graph.npz")
    data = module(path, group_by=first)
    parts = data.parts()
    assert all((parts[i : i + 3] == parts[i]).all() for i in range(0, 200, 3)) and len(parts.unique()) == 3
    about = data.describe()
    assert about["group_by"] == first and about["train_ratio"] == pytest.approx(len(data.whole.train) / 200)
    large = torch.stack([torch.arange(149), torch.arange(1, 150)])
    path = save_npz(
        replace(graph, relations={first: torch.cat([large, large.flip(0)], dim=1)}), tmp_path / "uneven.npz"
    )
    with pytest.warns(UserWarning, match=r"% of the nodes are for training, with data\.train_ratio=0\.4"):
        module(path, group_by=first)
    path = save_npz(replace(graph, relations={**graph.relations, first: cliques}), tmp_path / "graph.npz")
    with pytest.raises(UserError, match=r"no relation 'users' for data\.group_by, only"):
        module(path, group_by="users")
    with pytest.raises(UserError, match=r"data\.split=masks takes that of the file"):
        module(path, group_by=first, split="masks")


def test_means_over_the_whole_graph_are_refused_where_it_is_hidden(graph_file):
    with pytest.raises(UserError, match=r"data\.inductive=false"):
        module(graph_file, neighbour_hops=1, inductive=True)
