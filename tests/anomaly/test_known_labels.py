"""Labels as input: what may be visible, and that it tells."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from et.anomaly import lit
from et.anomaly.graph import NodeGraph
from et.anomaly.known_labels import MASKED, SMOOTHING, draw_masked, folds, label_counts, label_rates, visible_labels
from et.anomaly.lit import AnomalyTask
from et.baselines import neighbour_trees
from et.core import EdgeTopology
from et.runs.identity import fill_counts
from et.training.run import train
from tests.anomaly.conftest import save_npz

SIZES = ["model.head_dim=8", "model.num_memories=16", "model.steps=2"]
COUNTS = "model.label_counts=true"
HOPS = "model.label_hops=2"
BASELINES = ["mlp", "gt", "bwgnn", "gcn", "sage", "gin", "gat", "pmp", "trees", "rfgraph", "xgbgraph"]


def task_of(cfg):
    """An untrained task (a fitted one if it is trees) and the whole graph."""
    cfg = fill_counts(cfg)
    data = instantiate(cfg.data)
    data.setup()
    network = instantiate(cfg.model)
    if hasattr(network, "fit"):
        network.fit(data.whole.features, data.whole.topologies, data.whole.labels, data.whole.train)
    return instantiate(cfg.task, network=network.eval(), optim=cfg.optim).eval(), data.whole


def with_labels(batch, changed):
    """``batch`` with the labels of the nodes ``changed`` turned over."""
    from dataclasses import replace

    labels = batch.labels.clone()
    labels[changed] = 1 - labels[changed]
    return replace(batch, labels=labels)


def test_counts_are_the_dense_ones_and_leave_the_own_label_out():
    edge_index = torch.randint(0, 12, (2, 60), generator=torch.Generator().manual_seed(0))
    edge_index = torch.cat([edge_index, torch.arange(12).expand(2, -1)], 1)  # self-loops
    known = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(12, 2)
    for key, query in edge_index.T.tolist():
        if key != query and known[key] != MASKED:
            expected[query, known[key]] += 1
    topology = EdgeTopology(edge_index, 12)
    torch.testing.assert_close(label_counts(known, [topology, topology]).expm1(), expected.repeat(1, 2))


def test_rates_are_those_of_two_dense_gcn_layers():
    source, target = torch.randint(0, 12, (2, 40), generator=torch.Generator().manual_seed(0))
    adjacency = torch.zeros(12, 12).index_put((source, target), torch.tensor(1.0))
    adjacency = (adjacency + adjacency.T).clamp(max=1).fill_diagonal_(0)
    known = torch.arange(12) % 3
    root = adjacency.sum(1).clamp(min=1).rsqrt()
    layer = root[:, None] * adjacency * root
    edges = [(adjacency * scale).nonzero().T for scale in (1, 0)] + [torch.arange(12).expand(2, -1)]  # and self-loops
    topologies = [EdgeTopology(torch.cat([edge_index, edges[2]], 1), 12) for edge_index in edges[:2]]
    sums = layer @ layer @ torch.stack([known == 0, known == 1], dim=1).float() * 12 / 8
    share = 4.5 / 9
    odds = (sums[:, 1] + SMOOTHING * share) / (sums[:, 0] + SMOOTHING * (1 - share))
    expected = torch.stack([odds.log() - torch.tensor(share).logit(), sums.sum(1)], dim=1)
    torch.testing.assert_close(label_rates(known, topologies[:1]), expected)
    torch.testing.assert_close(label_rates(known, topologies, merged=True), expected)  # the other has no edges
    torch.testing.assert_close(label_rates(known, topologies), torch.cat([expected, torch.zeros(12, 2)], dim=1))
    assert torch.equal(label_rates(torch.full((12,), MASKED), topologies), torch.zeros(12, 4))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_the_masked_and_the_open_divide_the_training_nodes(share):
    train_nodes = torch.arange(5, 25)
    masked, others = draw_masked(train_nodes, share)
    assert len(masked) == min(max(1, round(share * 20)), 19)
    assert torch.cat([masked, others]).sort().values.tolist() == train_nodes.tolist()
    parts = [
        inside for inside, rest in folds(train_nodes, train_nodes) if not set(inside.tolist()) & set(rest.tolist())
    ]
    assert torch.cat(parts).sort().values.tolist() == train_nodes.tolist()


EXPERIMENTS = [("labels", []), ("labels", [COUNTS]), *[(f"{name}_labels", []) for name in BASELINES]]
EXPERIMENTS += [("pmp_labels", ["model.layers=2"])]  # over two layers labels come back
EXPERIMENTS += [("labels", [COUNTS, HOPS]), *((f"{name}_labels", [HOPS]) for name in ("mlp", "trees", "rfgraph"))]


@pytest.mark.parametrize("loops", [False, True], ids=["", "self-loops"])
@pytest.mark.parametrize(("suffix", "extra"), EXPERIMENTS)
def test_no_label_reaches_its_own_score(small_config, suffix, extra, loops):
    if suffix == "xgbgraph_labels":
        pytest.importorskip("xgboost")
    sizes = SIZES if suffix == "labels" else []
    task, batch = task_of(small_config(f"amazon_upu_40pct_{suffix}", *sizes, *extra, f"data.self_loops={loops}"))
    before = task.score(batch)
    for node in batch.train[:6].tolist():
        after = task.score(with_labels(batch, node))
        assert after[node] == before[node]
    hidden = torch.cat([batch.val, batch.test])
    assert torch.equal(task.score(with_labels(batch, hidden)), before)  # validation and test labels are never visible
    assert not torch.equal(task.score(with_labels(batch, batch.train)), before)  # training labels are: it can fail


@pytest.mark.parametrize("extra", [[], [COUNTS], [COUNTS, HOPS]])
def test_scoring_in_pieces_sees_the_same_labels(small_config, extra):
    task, batch = task_of(small_config("amazon_upu_40pct_labels", *SIZES, *extra))
    known = visible_labels(batch.labels, batch.train)
    inputs = (batch.features, batch.topologies, batch.nodes)
    torch.testing.assert_close(task.network.score(*inputs, chunk_size=32, known=known), task.network(*inputs, known))


def test_a_step_predicts_masked_nodes_and_sees_others(small_config):
    task, batch = task_of(small_config("amazon_upu_40pct_labels", *SIZES, "task.masked_share=0.25"))
    predicted, known = task.visible_in_training(batch)
    assert len(predicted) == 20 and (known[predicted] == MASKED).all()
    seen = (known != MASKED).nonzero()[:, 0]
    assert set(seen.tolist()) == set(batch.train.tolist()) - set(predicted.tolist())
    assert torch.equal(known[seen], batch.labels[seen])


def graph_of_groups() -> NodeGraph:
    """100 groups of six nodes of one class, connected to each other, with noise as features: only labels tell.

    In a graph of two communities permuted labels would tell, too: their mean differs by chance between the communities.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) // 6 % 2
    near, far = torch.triu_indices(6, 6, offset=1)
    start = torch.arange(100)[:, None] * 6
    edges = torch.stack([(start + near).flatten(), (start + far).flatten()])
    features = torch.randn(600, 5, generator=generator)
    return NodeGraph("groups", features, labels, {"edges": torch.cat([edges, edges.flip(0)], 1)})


def test_two_hops_need_known_labels(small_config):
    for experiment, wrong in (("labels", HOPS), ("mlp", HOPS), ("trees", HOPS), ("trees_labels", "model.label_hops=3")):
        with pytest.raises(Exception, match="label_hops"):
            instantiate(fill_counts(small_config(f"amazon_upu_40pct_{experiment}", wrong)).model)


PERMUTED = [("", []), ("", [COUNTS]), ("", [COUNTS, HOPS]), ("_mlp", []), ("_mlp", [HOPS])]
PERMUTED += [("_trees", []), ("_trees", [HOPS])]  # others that average over neighbours tell the groups apart


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "extra"), PERMUTED)
def test_labels_tell_and_permuted_ones_do_not(small_config, tmp_path, monkeypatch, suffix, extra):
    path = save_npz(graph_of_groups(), tmp_path / "groups.npz")
    common = [f"data.path={path}", "data.num_nodes=600"]
    if suffix == "_trees":
        common += ["model.hops=0"]  # means over neighbours tell the groups apart
    else:
        common += ["trainer.max_epochs=60", "optim.optimizer.lr=0.01", "trainer.check_val_every_n_epoch=10"]
    common += [*SIZES, "model.position_embedding=false"] if suffix == "" else []

    def auc(experiment: str, *more: str) -> float:
        cfg = small_config(experiment, *common, *more)
        cfg.force = True
        return train(cfg).record["metrics"]["test/auc"]

    generator = torch.Generator().manual_seed(0)

    def permuted(labels, nodes):  # anew each time: one permutation tells the groups apart, too
        order = torch.randperm(len(nodes), generator=generator)
        known = torch.full_like(labels, MASKED)
        known[nodes] = labels[nodes[order]]
        return known

    name = f"amazon_upu_40pct{suffix}"
    without, with_known = auc(name), auc(f"{name}_labels", *extra)
    monkeypatch.setattr(neighbour_trees if suffix == "_trees" else lit, "visible_labels", permuted)
    shuffled = auc(f"{name}_labels", *extra)
    assert with_known > 0.8 > 0.65 > max(without, shuffled)
    assert abs(shuffled - without) < 0.15


def test_a_share_that_masks_nothing_or_everything_is_an_error():
    from omegaconf import OmegaConf

    from et.utils.errors import UserError

    for share in (0, 1):
        with pytest.raises(UserError, match="masked_share must lie between 0 and 1"):
            AnomalyTask(torch.nn.Identity(), OmegaConf.create({}), masked_share=share)
