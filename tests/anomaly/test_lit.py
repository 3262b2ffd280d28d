from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sklearn.metrics import f1_score, roc_auc_score

from et.anomaly.data import NodeDataModule
from et.anomaly.lit import MEASURES, AnomalyTask, weighted_cross_entropy
from et.runs.identity import fill_counts
from et.runs.loading import load_run
from et.training.evaluation import evaluate
from et.training.run import build_network, train
from et.utils.errors import UserError
from tests.anomaly.test_known_labels import task_of
from tests.configs import ROOT

TINY = ["model.head_dim=8", "model.num_memories=16", "trainer.max_epochs=6"]


def rows(outcome) -> dict[int, dict[str, float]]:
    """metrics.csv of a run."""
    with (outcome.folder / "metrics.csv").open() as file:
        names = file.readline().strip().split(",")
        lines = [line.rstrip("\n").split(",") for line in file]
    table = [{k: float(v) for k, v in zip(names, line, strict=True) if v} for line in lines]
    return {int(row.pop("step")): row for row in table}


def val_by_epoch(outcome) -> list[dict[str, float]]:
    return [
        {k: v for k, v in row.items() if k.startswith("val/")}
        for _, row in sorted(rows(outcome).items())
        if "val/auc" in row
    ]


def test_loss_of_many_nodes_in_half_precision_is_that_in_single():
    """The sum of 40,000 weights is beyond float16."""
    torch.manual_seed(0)
    log_odds, labels = torch.randn(40_000).half(), (torch.rand(40_000) < 0.03).long()
    expected = weighted_cross_entropy(log_odds.float(), labels, 30.0)
    assert expected > 0.5
    torch.testing.assert_close(weighted_cross_entropy(log_odds, labels, 30.0), expected)


@pytest.mark.parametrize("weight", [0.5, 1.0, 17.3])
def test_loss_is_the_class_weighted_cross_entropy_of_two_logits(weight):
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 2), torch.randint(0, 2, (50,))
    expected = F.cross_entropy(logits, labels, weight=torch.tensor([1.0, weight]))
    torch.testing.assert_close(weighted_cross_entropy(logits[:, 1] - logits[:, 0], labels, weight), expected)


@pytest.mark.parametrize(("balance", "weight"), [(1.0, 4.0), (0.5, 2.0), (0.0, 1.0)])
def test_balance_is_the_exponent_of_omega(small_config, balance, weight):
    cfg = small_config("amazon_upu_40pct", *TINY, f"task.balance={balance}", "trainer.max_epochs=1")
    outcome, network = train(cfg), build_network(fill_counts(cfg))
    batch = outcome.data.whole
    assert batch.anomaly_weight == 4
    log_odds = network(batch.features, batch.topologies, batch.nodes)[batch.train]
    loss = weighted_cross_entropy(log_odds, batch.labels[batch.train], weight).item()
    assert rows(outcome)[0]["train/loss"] == pytest.approx(loss, rel=1e-5)


def test_an_unknown_protocol_is_an_error():
    with pytest.raises(UserError, match="protocol must be held_out, released or gadbench"):
        AnomalyTask(torch.nn.Identity(), OmegaConf.create({}), "both")


def spoil(monkeypatch, part: str) -> None:
    """Replace the labels of one part by noise after the split was drawn."""
    setup = NodeDataModule.setup

    def spoiled(self, stage=None):
        fresh = self.whole is None
        setup(self, stage)
        if fresh:
            ids, labels = getattr(self.whole, part), self.whole.labels.clone()
            labels[ids] = torch.randint(0, 2, (len(ids),), generator=torch.Generator().manual_seed(1))
            object.__setattr__(self.whole, "labels", labels)

    monkeypatch.setattr(NodeDataModule, "setup", spoiled)


@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("amazon_upu_40pct", [*TINY, "fidelity=paper"]),
        ("amazon_upu_40pct", [*TINY, "fidelity=released"]),
        ("amazon_upu_40pct", [*TINY, "data.sample_ratio=0.5"]),
        ("amazon_upu_40pct_bwgnn", ["trainer.max_epochs=6"]),
        ("amazon_upu_40pct_trees", []),
    ],
)
def test_held_out_never_reads_a_test_label_before_the_end(small_config, monkeypatch, experiment, overrides):
    cfg = small_config(experiment, *overrides)
    honest = train(cfg)
    with monkeypatch.context() as patch:
        spoil(patch, "test")
        cfg.force = True
        blind = train(cfg)
    for name in honest.record["metrics"]:
        same = honest.record["metrics"][name] == blind.record["metrics"][name]
        assert same == (not name.startswith("test/") or name == "test/threshold"), name
    assert honest.record["best_epoch"] == blind.record["best_epoch"]
    assert val_by_epoch(honest) == val_by_epoch(blind)
    weights = zip(honest.task.state_dict().items(), blind.task.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in weights)
    with monkeypatch.context() as patch:  # the comparison can fail: validation labels do matter
        spoil(patch, "val")
        assert train(cfg).record["metrics"]["val/f1_macro"] != honest.record["metrics"]["val/f1_macro"]


def test_held_out_measures_test_nodes_once(small_config, monkeypatch):
    measured = []
    measure = AnomalyTask._measure

    def spy(self, log_odds, batch, part, threshold=None):
        measured.append("test" if part is batch.test else "val")
        assert part is batch.test or threshold is None
        assert not self.network.training
        return measure(self, log_odds, batch, part, threshold)

    monkeypatch.setattr(AnomalyTask, "_measure", spy)
    train(small_config("amazon_upu_40pct", *TINY))
    assert measured == ["val"] * 7 + ["test"]


def test_protocols_differ_in_scoring_only(small_config, monkeypatch):
    """With the same split and no dropout: released scores are the held-out ones of the epoch before."""
    common = [*TINY, "fidelity=released", "model.dropout=0", "data.protocol=held_out"]
    held_out = train(small_config("amazon_upu_40pct", *common))
    released = train(small_config("amazon_upu_40pct", *common, "protocol=released"))
    for name, value in held_out.task.network.state_dict().items():
        assert torch.equal(value, released.task.network.state_dict()[name]), name
    late, early = val_by_epoch(released)[1:], val_by_epoch(held_out)[:-1]
    assert len(late) == 5
    for a, b in zip(late, early, strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert held_out.record["dataset"]["split_sha256"] == released.record["dataset"]["split_sha256"]


def test_dropout_is_active_in_released_scores(small_config):
    common = [*TINY, "fidelity=released", "data.protocol=held_out"]
    held_out = train(small_config("amazon_upu_40pct", *common))
    released = train(small_config("amazon_upu_40pct", *common, "protocol=released"))
    late, early = val_by_epoch(released)[1:], val_by_epoch(held_out)[:-1]
    assert all(a["val/auc"] != b["val/auc"] for a, b in zip(late, early, strict=True))


def released_by_hand(cfg, epochs: int) -> dict[str, float]:
    """The released protocol, written out with scikit-learn: test numbers of the epoch with the best validation F1."""
    data = NodeDataModule("file", "", 200, 5, path=cfg.data.path, protocol="released", fidelity="released")
    data.setup()
    batch, network = data.whole, build_network(cfg)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    labels, best, kept = batch.labels.numpy(), 0.0, {}
    for _ in range(epochs):
        network.train()
        log_odds = network(batch.features, batch.topologies, batch.nodes)
        optimizer.zero_grad()
        logits = torch.stack([torch.zeros_like(log_odds), log_odds], 1)
        weight = torch.tensor([1.0, batch.anomaly_weight])
        F.cross_entropy(logits[batch.train], batch.labels[batch.train], weight=weight).backward()
        optimizer.step()
        p = torch.sigmoid(log_odds.detach()).numpy()
        scores = {
            t: f1_score(labels[batch.val], p[batch.val] > t, average="macro") for t in np.linspace(0.05, 0.95, 19)
        }
        threshold = max(scores, key=scores.get)
        if scores[threshold] > best:
            best = scores[threshold]
            kept = {
                "val/f1_macro": best,
                "test/f1_macro": f1_score(labels[batch.test], p[batch.test] > threshold, average="macro"),
                "test/auc": roc_auc_score(labels[batch.test], p[batch.test]),
                "test/threshold": threshold,
            }
    return kept


def test_released_protocol_reports_what_it_does_by_hand(small_config):
    """However often the whole graph would be validated."""
    metrics = []
    for every in (1, 5):
        cfg = small_config(
            "amazon_upu_40pct", *TINY, "fidelity=released", "protocol=released", "model.dropout=0",
            "trainer.max_epochs=12", f"trainer.check_val_every_n_epoch={every}",
        )  # fmt: skip
        metrics.append(train(cfg).record["metrics"])
    for name, value in released_by_hand(fill_counts(cfg), 12).items():
        assert [found[name] for found in metrics] == pytest.approx([value, value], abs=1e-5), name


def test_released_numbers_survive_an_interruption(small_config):
    """12 epochs at once, and 12 in two goes, under the protocol whose numbers arise in training."""
    common = [*TINY, "fidelity=released", "protocol=released"]
    common += ["trainer.max_epochs=12", "callbacks.save_every_n_epochs=1"]
    whole = train(small_config("amazon_upu_40pct", *common))
    cfg = small_config("amazon_upu_40pct", *common, "tags=[again]")
    cfg.paths.runs += "/again"

    class Stop(Exception):
        pass

    training_step, calls = AnomalyTask.training_step, []

    def interrupted(self, batch, batch_index):
        calls.append(1)
        if len(calls) == 8:
            raise Stop
        return training_step(self, batch, batch_index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnomalyTask, "training_step", interrupted)
        with pytest.raises(Stop):
            train(cfg)
        resumed = train(cfg)
    assert len(calls) == 8 + 5
    assert resumed.record["metrics"] == whole.record["metrics"]


def test_training_on_subgraphs_scores_the_whole_graph_held_out(small_config):
    held_out = train(small_config("amazon_upu_40pct", *TINY, "data.sample_ratio=0.5"))
    assert set(held_out.record["metrics"]) == {f"{part}/{name}" for part in ("val", "test") for name in MEASURES}
    assert held_out.task.score(held_out.data.whole).shape == (200,)
    released = train(
        small_config("amazon_upu_40pct", *TINY, "data.sample_ratio=0.5", "fidelity=released", "protocol=released")
    )
    assert 0 < released.record["metrics"]["test/f1_macro"] <= 1


def test_a_sampled_graph_without_an_anomaly_in_a_part_is_not_measured(small_config):
    task, batch = task_of(small_config("amazon_upu_40pct", *TINY, "fidelity=released", "protocol=released"))
    log_odds, before = torch.randn(len(batch.labels)), task.best_val.clone()
    for part in ("val", "test"):
        benign = getattr(batch, part)[batch.labels[getattr(batch, part)] == 0]
        task._measure_training_step(log_odds, replace(batch, **{part: benign}))
        assert torch.equal(task.best_val, before)
    with pytest.raises(UserError, match=r"raise data\.sample_ratio"):
        task.test_step(batch, 0)
    task._measure_training_step(log_odds, batch)
    assert not torch.equal(task.best_val, before)


def test_averaged_weights_are_refused_where_training_steps_are_scored(small_config):
    cfg = small_config("amazon_upu_gadbench_encoded", *TINY, "data.num_features=null", "protocol=released")
    with pytest.raises(UserError, match=r"averaged weights have no part.*~callbacks\.ema"):
        train(cfg)


def test_scores_that_are_no_numbers_are_an_error(small_config):
    """One step with an absurd learning rate: the loss was finite, the scores after it are not."""
    cfg = small_config("demo_anomaly_mlp", "trainer.max_epochs=1", "optim.optimizer.lr=1e30")
    with pytest.raises(UserError, match=r"scores \d+ of \d+ nodes NaN: lower optim\.optimizer\.lr"):
        train(cfg)
    task, batch = task_of(small_config("demo_anomaly_mlp"))
    with torch.no_grad():
        next(task.network.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match="nodes NaN"):
        task.predict_step(batch, 0)


def test_the_split_is_saved_with_the_run(small_config):
    outcome = train(small_config("amazon_upu_40pct", *TINY))
    parts = np.load(outcome.folder / "split.npz", allow_pickle=False)["parts"]
    assert (parts == 1).sum() == outcome.record["dataset"]["train_nodes"]
    whole = outcome.data.whole
    assert np.array_equal(np.flatnonzero(parts == 3), whole.nodes[whole.test].sort().values.numpy())


def test_two_runs_of_a_seed_agree_bit_for_bit_and_another_seed_does_not(small_config):
    cfg = small_config("amazon_upu_40pct", *TINY, "fidelity=released")
    first = train(cfg)
    cfg.force = True
    second = train(cfg)
    assert first.record["metrics"] == second.record["metrics"]
    cfg.seed = 1
    assert train(cfg).record["metrics"] != first.record["metrics"]


def test_gadbench_chooses_by_average_precision_and_stops_early(small_config):
    """A learning rate that changes no weight makes no epoch better than the first."""
    common = ["data.train_ratio=0.4", *TINY[:2], "optim.optimizer.lr=1e-30", "callbacks.patience=3"]
    record = train(small_config("reddit_gadbench", *common)).record
    assert (record["protocol"], record["best_epoch"], record["epochs"]) == ("gadbench", 0, 4)
    assert config_monitor(small_config("demo_anomaly", "protocol=gadbench")) == "val/average_precision"
    assert config_monitor(small_config("demo_anomaly")) == "val/f1_macro"


def config_monitor(cfg) -> str:
    return cfg.callbacks.monitor


def test_a_graph_of_unstated_size_trains_and_is_loaded_again(small_config):
    cfg = small_config("amazon_upu_40pct", *TINY, "data.num_nodes=null", "data.num_features=null")
    outcome = train(cfg)
    stated = small_config("amazon_upu_40pct", *TINY)
    assert outcome.record["num_params"] == sum(p.numel() for p in build_network(fill_counts(stated)).parameters())
    _, network = load_run(outcome.folder)
    batch = outcome.data.whole
    inputs = (batch.features, batch.topologies, batch.nodes)
    assert network(*inputs).shape == (200,)


@pytest.mark.slow
def test_trees_and_et_learn_the_small_graph(small_config):
    """Better than chance by far: the data has a signal and the pipeline passes it on."""
    for experiment, overrides in (
        ("amazon_upu_40pct", ["model.head_dim=16", "model.num_memories=32", "optim.optimizer.lr=0.01"]),
        ("amazon_upu_40pct_trees", []),
    ):
        assert train(small_config(experiment, *overrides)).record["metrics"]["test/auc"] > 0.8


def test_trees_are_fitted_on_the_training_graph_again_when_evaluated(small_config):
    """A checkpoint has no trees; in inductive mode the graph that is scored is not the one to fit on."""
    outcome = train(small_config("amazon_upu_40pct_trees", "data.inductive=true", "model.hops=2"))
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        again = evaluate(compose("evaluate", [f"run={outcome.folder}"]))
    assert again["metrics"] == {key: outcome.record["metrics"][key] for key in again["metrics"]}
    whole = train(small_config("amazon_upu_40pct_trees", "model.hops=2"))
    assert again["metrics"] != {key: whole.record["metrics"][key] for key in again["metrics"]}  # it can fail


def test_trees_train_for_one_epoch_whatever_is_asked_for(small_config):
    more = ["trainer.max_epochs=20", "trainer.check_val_every_n_epoch=5"]
    once, asked = (train(small_config("amazon_upu_40pct_trees", *given)).record for given in ((), more))
    assert asked["epochs"] == once["epochs"] == 1
    assert asked["metrics"] == once["metrics"]


def test_trees_are_not_fitted_on_samples(small_config):
    with pytest.raises(UserError, match=r"data\.sample_ratio=null"):
        train(small_config("amazon_upu_40pct_trees", "data.sample_ratio=0.5"))


def test_a_position_embedding_is_refused_where_nodes_are_hidden(small_config):
    with pytest.raises(UserError, match=r"model\.position_embedding=false"):
        train(small_config("amazon_upu_40pct", *TINY, "data.inductive=true"))
    train(small_config("amazon_upu_40pct", *TINY, "data.inductive=true", "model.position_embedding=false"))
