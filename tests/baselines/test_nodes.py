"""The baselines for nodes: each against a plain dense computation, and all behind one interface."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from et.anomaly.aggregates import neighbour_max, neighbour_mean, neighbour_sum
from et.anomaly.known_labels import MASKED, label_counts, visible_labels
from et.baselines.bwgnn import BWGNN, beta_wavelets, laplacian_times
from et.baselines.neighbour_trees import NeighbourTrees, RFGraph, XGBGraph
from et.baselines.node_gnn import KINDS, NodeGNN
from et.baselines.node_mlp import NodeMLP
from et.baselines.node_transformer import NodeTransformer, TransformerLayer
from et.baselines.pmp import PMP, PMPLayer
from et.core import EdgeTopology
from et.utils.errors import UserError
from tests.anomaly.test_released import symmetric_edges

N, F = 20, 6
NETWORKS = [
    *(make(F, 8) for make in (NodeMLP, NodeTransformer, BWGNN)),
    *(make(F, 8, known_labels=True) for make in (NodeMLP, NodeTransformer, BWGNN)),
    *(NodeGNN(F, kind, 8) for kind in KINDS),
    NodeGNN(F, "gin", 8, known_labels=True),
    *(PMP(F, 8, layers=2, aggregate=aggregate, known_labels=True) for aggregate in ("sum", "mean")),
]


def graph(seed: int = 0) -> tuple[torch.Tensor, EdgeTopology, torch.Tensor]:
    """Features, topology and its adjacency (query, key) with multiplicities; nodes 18 and 19 are isolated."""
    edge_index = symmetric_edges(N - 2, 40, loops=False, seed=seed)
    edge_index = torch.cat([edge_index, edge_index[:, :6], edge_index[:, :6].flip(0)], dim=1)
    adjacency = torch.zeros(N, N, dtype=torch.float64)
    adjacency.index_put_((edge_index[1], edge_index[0]), torch.ones(edge_index.shape[1]).double(), accumulate=True)
    features = torch.randn(N, F, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return features, EdgeTopology(edge_index, N), adjacency


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_networks_give_one_number_a_node_and_train(network):
    features, topology, _ = graph()
    out = network(features.float(), [topology])
    assert out.shape == (N,) and torch.isfinite(out).all()
    network.zero_grad()
    out.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_mlp_sees_no_neighbour():
    features, topology, _ = graph()
    mlp = NodeMLP(F, 8).double()
    changed = features.clone()
    changed[0] += 1
    difference = (mlp(changed, [topology]) - mlp(features, [topology])).abs()
    assert difference[0] > 0 and (difference[1:] == 0).all()
    assert [type(m).__name__ for m in NodeMLP(F, 8, layers=1).stages] == ["Linear"]


class TestTransformer:
    def test_a_layer_is_masked_dense_attention(self):
        torch.manual_seed(0)
        layer = TransformerLayer(8, 2, dropout=0.0).double()
        _, topology, adjacency = graph()
        x = torch.randn(N, 8, dtype=torch.float64)
        q, k, v = (part.view(N, 2, 4).transpose(0, 1) for part in layer.to_qkv(x).chunk(3, dim=-1))
        weight = (q @ k.mT / math.sqrt(4)).exp() * adjacency  # a repeated edge counts as often as it occurs
        weight = torch.nan_to_num(weight / weight.sum(-1, keepdim=True))
        y = layer.norm_attention(x + layer.out((weight @ v).transpose(0, 1).reshape(N, 8)))
        expected = layer.norm_mlp(y + layer.mlp(y))
        torch.testing.assert_close(layer(x, topology), expected)

    def test_wrong_sizes(self):
        features, topology, _ = graph()
        with pytest.raises(ValueError, match="multiple of num_heads"):
            NodeTransformer(F, 10, 4)
        with pytest.raises(UserError, match="one merged graph"):
            NodeTransformer(F, 8, 2).double()(features, [topology, topology])


class TestBWGNN:
    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_wavelets_are_beta_densities(self, order):
        """Against the definition, at points in [0, 2]; over [0, 2] each integrates to 1, as a density does."""
        from scipy.stats import beta

        points = np.linspace(0, 2, 2001)
        for p, row in enumerate(beta_wavelets(order).double().numpy()):
            values = np.polynomial.polynomial.polyval(points, row)
            np.testing.assert_allclose(values, beta.pdf(points / 2, p + 1, order - p + 1) / 2, atol=1e-6)
            assert np.trapezoid(values, points) == pytest.approx(1, abs=1e-5)

    def test_laplacian_is_the_dense_one(self):
        features, topology, adjacency = graph()
        scale = adjacency.sum(1).clamp(min=1).rsqrt()
        laplacian = torch.eye(N) - scale[:, None] * adjacency * scale
        torch.testing.assert_close(laplacian_times(features, topology), laplacian @ features)
        assert torch.equal(laplacian_times(features, topology)[18:], features[18:])

    def test_filters_act_on_the_spectrum(self):
        """In the Laplacian's eigenbasis every wavelet only multiplies."""
        features, topology, adjacency = graph()
        scale = adjacency.sum(1).clamp(min=1).rsqrt()
        values, vectors = torch.linalg.eigh(torch.eye(N) - scale[:, None] * adjacency * scale)
        network = BWGNN(F, 8, order=2).double()
        found = network.filtered(features, topology).unflatten(1, (3, F))
        for p in range(3):
            response = sum(c * values**power for power, c in enumerate(network.wavelets[p]))
            torch.testing.assert_close(found[:, p], vectors @ (response[:, None] * (vectors.T @ features)))

    def test_relations_are_summed_before_the_last_layer(self):
        network = BWGNN(F, 8).double()
        features, first, _ = graph(0)
        second = graph(1)[1]
        x = network.encode(features)
        joined = network.mix(network.filtered(x, first)) + network.mix(network.filtered(x, second))
        torch.testing.assert_close(network(features, [first, second]), network.head(joined)[:, 0])


class TestNodeGNN:
    def test_layers_are_the_dense_ones(self):
        """GCN, GraphSAGE and GIN against products with the adjacency."""
        features, topology, adjacency = graph()
        degree = adjacency.sum(1, keepdim=True)
        mean = torch.nan_to_num(adjacency / degree)
        scale = torch.nan_to_num(degree.rsqrt(), posinf=0.0)
        for kind, expected in (
            ("gcn", lambda layer: (scale * adjacency * scale.T) @ layer.lin(features) + layer.bias),
            ("sage", lambda layer: layer.lin_l(mean @ features) + layer.lin_r(features)),
            ("gin", lambda layer: layer.nn(features + mean @ features)),
        ):
            network = NodeGNN(F, kind, 8, layers=1).double()
            found = network.head(expected(network.layers[0]).relu())[:, 0]
            torch.testing.assert_close(network(features, [topology]), found)

    @pytest.mark.parametrize("aggregate", ["mean", "sum", "max"])
    @pytest.mark.parametrize("kind", ["gcn", "sage", "gin"])
    def test_a_sparse_matrix_stands_for_the_edges(self, kind, aggregate):
        """Directed edges, some of them several times, and nodes without any: output and gradients."""
        torch.manual_seed(0)
        network = NodeGNN(F, kind, 8, layers=2, aggregate=aggregate).double()
        edge_index = torch.randint(0, N - 2, (2, 60))
        edge_index = torch.cat([edge_index, edge_index[:, :8], torch.arange(4).expand(2, -1)], dim=1)
        topology = EdgeTopology(edge_index, N)
        if not torch.backends.mkl.is_available():
            pytest.skip("needs torch with MKL")
        assert network.edges(topology, torch.zeros(N, F)).layout == torch.sparse_csr

        def values_and_gradients() -> list[torch.Tensor]:
            features = torch.randn(N, F, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            features.requires_grad_()
            out = network(features, [topology])
            inputs = [features, *network.parameters()]
            return [out, *torch.autograd.grad(out.sigmoid().log().mean(), inputs)]

        sparse = values_and_gradients()
        network.edges = lambda topology, features: edge_index
        for found, expected in zip(sparse, values_and_gradients(), strict=True):
            torch.testing.assert_close(found, expected)

    def test_wrong_settings(self):
        features, topology, _ = graph()
        with pytest.raises(UserError, match=r"model\.kind must be gcn, sage, gin, gat, not 'pna'"):
            NodeGNN(F, "pna")
        with pytest.raises(UserError, match=r"multiple of model\.num_heads"):
            NodeGNN(F, "gat", 10)
        with pytest.raises(UserError, match="one merged graph"):
            NodeGNN(F).double()(features, [topology, topology])


class TestPMP:
    KNOWN = torch.arange(N) % 3

    @pytest.mark.parametrize("aggregate", ["sum", "mean"])
    def test_a_layer_is_a_loop_over_edges(self, aggregate):
        """Each message times the weight of its root and class, a self-loop left out."""
        torch.manual_seed(0)
        layer = PMPLayer(F, 4, aggregate).double()
        for generator in layer.generators:
            torch.nn.init.normal_(generator.bias)
        features, _, adjacency = graph()
        edge_index = adjacency.T.nonzero().T  # each edge once
        topology = EdgeTopology(torch.cat([edge_index, torch.arange(N).expand(2, -1)], 1), N)
        found = layer(features, [topology], self.KNOWN)
        for root in range(N):
            x, neighbours = features[root], (adjacency[root] > 0).nonzero()[:, 0].tolist()
            benign, fraud = (
                weight.weight * generator(x) for weight, generator in zip(layer.classes, layer.generators, strict=True)
            )
            share = layer.gate(x).sigmoid()
            weights = {0: benign, 1: fraud, MASKED: share * fraud + (1 - share) * benign}
            message = sum((weights[int(self.KNOWN[j])] @ features[j] for j in neighbours), torch.zeros(4).double())
            if aggregate == "mean":
                message = message / max(1, len(neighbours))
            torch.testing.assert_close(found[root], layer.own(x) + message)

    def test_it_does_not_depend_on_the_order_of_the_nodes(self):
        features, _, adjacency = graph()
        network, edges = PMP(F, 8, layers=2, known_labels=True).double(), adjacency.T.nonzero().T
        nodes = torch.randperm(N, generator=torch.Generator().manual_seed(0))
        place = nodes.argsort()
        expected = network(features, [EdgeTopology(edges, N)], None, self.KNOWN)
        found = network(features[nodes], [EdgeTopology(place[edges], N)], None, self.KNOWN[nodes])
        torch.testing.assert_close(found[place], expected)

    def test_a_label_reaches_neighbours_and_over_two_layers_its_own_node(self):
        """Hence the label of a predicted node is masked."""
        features, topology, adjacency = graph()
        turned = self.KNOWN.clone()
        turned[0] = 1 - turned[0]
        neighbours = adjacency[:, 0] > 0
        for layers, returns in ((1, False), (2, True)):
            torch.manual_seed(0)
            network = PMP(F, 8, layers=layers, known_labels=True).double()
            before, after = (network(features, [topology], None, known) for known in (self.KNOWN, turned))
            changed = before != after
            assert changed[neighbours].any() and bool(changed[0]) is returns
            assert torch.equal(
                network(features, [topology], None, torch.full((N,), MASKED)), network(features, [topology])
            )

    def test_an_unknown_aggregate_is_an_error(self):
        with pytest.raises(UserError, match=r"model\.aggregate must be sum or mean, not 'max'"):
            PMP(F, aggregate="max")


class TestTrees:
    def test_sums_and_maxima_are_the_dense_ones(self):
        features, topology, adjacency = graph()
        torch.testing.assert_close(neighbour_sum(features, topology), adjacency @ features)
        hidden = torch.where(adjacency[..., None] > 0, features[None], -torch.inf).amax(1)
        assert torch.equal(neighbour_max(features, topology), torch.where(hidden.isinf(), 0, hidden))

    @pytest.mark.parametrize("make", [XGBGraph, RFGraph])
    @pytest.mark.parametrize("aggregate", ["mean", "sum", "max"])
    def test_other_ensembles_learn_from_neighbours(self, make, aggregate):
        if make is XGBGraph:
            pytest.importorskip("xgboost", reason="XGBoost is not installed")
        hidden = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
        topology = EdgeTopology(symmetric_edges(400, 800, loops=False), 400)
        collected = {"mean": neighbour_mean, "sum": neighbour_sum, "max": neighbour_max}[aggregate](hidden, topology)
        labels = (collected[:, 0] > collected.median()).long()
        trees = make(hops=1, aggregate=aggregate)
        trees.fit(hidden, [topology], labels, torch.arange(200))
        scores = trees(hidden, [topology])
        assert scores.shape == (400,) and torch.isfinite(scores).all()
        assert float(((scores > 0).long() == labels)[200:].float().mean()) > 0.9

    def test_known_labels_are_columns_that_are_not_averaged(self):
        features, topology, _ = graph()
        known = torch.arange(N) % 3
        trees = NeighbourTrees(hops=2, known_labels=True)
        inputs = trees.inputs(features, [topology], known)
        assert torch.equal(inputs[:, : 3 * F], NeighbourTrees(hops=2).inputs(features, [topology]))
        assert torch.equal(inputs[:, 3 * F :], label_counts(known, [topology]).to(features))

    def test_an_unknown_aggregate_is_an_error(self):
        with pytest.raises(UserError, match=r"model\.aggregate must be mean, sum, max, not 'median'"):
            RFGraph(aggregate="median")

    def test_means_are_the_dense_ones(self):
        features, topology, adjacency = graph()
        expected = torch.nan_to_num(adjacency / adjacency.sum(1, keepdim=True)) @ features
        torch.testing.assert_close(neighbour_mean(features, topology), expected)

    def test_inputs_are_features_and_means_of_each_relation(self):
        features, first, _ = graph(0)
        second = graph(1)[1]
        inputs = NeighbourTrees(hops=2).inputs(features, [first, second])
        one, other = neighbour_mean(features, first), neighbour_mean(features, second)
        columns = [features, one, neighbour_mean(one, first), other, neighbour_mean(other, second)]
        assert torch.equal(inputs, torch.cat(columns, dim=1))
        assert torch.equal(NeighbourTrees(hops=0).inputs(features, [first]), features)
        degrees = torch.stack([graph(0)[2].sum(1), graph(1)[2].sum(1)], 1).log1p()
        wide = NeighbourTrees(hops=2, degrees=True).inputs(features, [first, second])
        torch.testing.assert_close(wide, torch.cat([inputs, degrees], 1))

    def test_neighbours_tell_what_features_do_not(self):
        """Labels that only the neighbours' features give away."""
        rng = np.random.default_rng(0)
        hidden = torch.from_numpy(rng.normal(size=(600, 1))).float()
        edge_index = symmetric_edges(600, 3000, loops=False)
        topology = EdgeTopology(edge_index, 600)
        labels = (neighbour_mean(hidden, topology)[:, 0] > 0).long()
        train, test = torch.arange(300), torch.arange(300, 600)
        accuracy = {}
        for hops in (0, 1):
            trees = NeighbourTrees(hops=hops)
            assert not trees.fitted
            trees.fit(hidden, [topology], labels, train)
            assert trees.fitted
            accuracy[hops] = float(((trees(hidden, [topology]) > 0).long() == labels)[test].float().mean())
        assert accuracy[1] > 0.95 > 0.7 > accuracy[0]

    def test_labels_outside_training_are_not_looked_at(self):
        features, topology, _ = graph()
        labels, train = torch.arange(N) % 2, torch.arange(10)
        noisy = labels.clone()
        noisy[10:] = -1
        results = []
        for given in (labels, noisy):
            trees = NeighbourTrees(min_samples_leaf=1)
            trees.fit(features.float(), [topology], given, train)
            results.append(trees(features.float(), [topology]))
        assert torch.equal(*results)

    def test_trees_are_not_fitted_to_rates_that_contain_the_own_label(self):
        """Neighbours are drawn at random, so their labels say nothing. A rate with the node's own label would."""
        count, generator = 2000, torch.Generator().manual_seed(0)
        labels = torch.arange(count) % 2
        features = labels[:, None] + torch.randn(count, 1, generator=generator)
        topology = EdgeTopology(symmetric_edges(count, 1500, loops=False), count)
        train = torch.arange(count // 2)
        auc = []
        for label_hops in (1, 2):
            trees = NeighbourTrees(hops=0, rounds=20, known_labels=True, label_hops=label_hops)
            trees.fit(features, [topology], labels, train)
            scores = trees(features, [topology], known=visible_labels(labels, train))
            auc.append(roc_auc_score(labels[count // 2 :], scores[count // 2 :]))
        assert auc[0] > 0.7 and auc[1] > auc[0] - 0.03, auc

    def test_bagged_trees_average_log_odds_of_bootstrap_samples(self):
        features, topology, _ = graph()
        arguments = (features.float(), [topology], torch.arange(N) % 2, torch.arange(N))
        one, bagged = NeighbourTrees(min_samples_leaf=1), NeighbourTrees(min_samples_leaf=1, bags=3)
        for trees in (one, bagged):
            trees.fit(*arguments)
        inputs = bagged.inputs(*arguments[:2]).numpy()
        each = [tree.decision_function(inputs) for tree in bagged.trees]
        assert len(each) == 3 and not np.allclose(each[0], each[1])
        np.testing.assert_allclose(bagged.raw_scores(inputs), np.mean(each, axis=0), rtol=1e-6)
        assert not torch.allclose(one(*arguments[:2]), bagged(*arguments[:2]))

    @pytest.mark.parametrize("labels_read", [{}, {"known_labels": True, "label_hops": 2, "bags": 2}])
    def test_trees_do_not_depend_on_the_order_of_the_nodes(self, labels_read):
        """Features with many equal values, so that many splits gain the same."""
        rng = np.random.default_rng(1)
        nodes, count = torch.from_numpy(rng.permutation(400)), 400
        features = torch.from_numpy(rng.integers(0, 3, (count, 4)) / 7).float()
        labels = torch.from_numpy((rng.random(count) < 0.3).astype(np.int64))
        edge_index, train = symmetric_edges(count, 1500, loops=False), torch.arange(0, count, 2)
        place = nodes.argsort()
        found = []
        for ids, at in ((torch.arange(count), torch.arange(count)), (nodes, place)):
            topology = EdgeTopology(at[edge_index], count)
            trees = NeighbourTrees(rounds=60, learning_rate=0.3, min_samples_leaf=2, **labels_read)
            trees.fit(features[ids], [topology], labels[ids], at[train].sort().values)
            known = visible_labels(labels[ids], at[train]) if labels_read else None
            found.append(trees(features[ids], [topology], known=known)[at])
        assert torch.equal(*found)
