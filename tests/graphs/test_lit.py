"""Training and scoring end to end on small data: measures, both protocols, resuming, what is recorded."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from et.graphs import lit
from et.graphs.lit import GraphTask, class_weights, seeded
from et.graphs.metrics import Measures, constant_answers
from et.graphs.model import GraphEnergyTransformer
from et.graphs.protocol import released_accuracy
from et.runs.loading import load_weights
from et.training.evaluation import evaluate
from et.training.run import train
from et.utils.errors import UserError

SMALL = ["model.dim=16", "model.num_heads=2", "model.head_dim=4", "model.num_memories=8", "model.num_blocks=1"]


@pytest.fixture
def toy_run(config, tmp_path, make_tu):
    """Configuration of a short run on the toy data set (rings and paths)."""
    make_tu(tmp_path / "data")

    def build(*overrides):
        return config(
            "experiment=tu_mutag", f"paths.data={tmp_path}/data", "data.name=TOY", "data.num_features=3",
            "data.num_edge_features=2", "data.folds=5", "trainer.max_epochs=2", "optim.schedule.warmup_epochs=1",
            *SMALL, *overrides,
        )  # fmt: skip

    return build


def test_accuracy_and_mean_recall():
    measures = Measures(3)
    outputs, target = F.one_hot(torch.tensor([0, 0, 1, 1, 0]), 4).float(), torch.tensor([0, 0, 0, 1, 1])
    measures.update(outputs[:3], target[:3])
    measures.update(outputs[3:], target[3:])
    found = measures.compute()
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["accuracy_weighted"] == pytest.approx((2 / 3 + 1 / 2) / 2)  # no node of class 2
    assert found["loss"] == pytest.approx(F.cross_entropy(outputs, target).item())


def test_predictions_beyond_the_classes_are_wrong():
    measures = Measures(2)
    measures.update(F.one_hot(torch.tensor([7, 1]), 10).float(), torch.tensor([0, 1]))
    assert measures.compute()["accuracy"] == 0.5


def test_mean_absolute_error_does_not_depend_on_the_batches():
    outputs, target = torch.randn(7, 1), torch.randn(7)
    measures = Measures(1)
    measures.update(outputs[:5], target[:5])
    measures.update(outputs[5:], target[5:])
    assert measures.compute() == {"mae": pytest.approx((outputs[:, 0] - target).abs().mean().item())}


def test_constant_answers_are_the_commonest_class_and_the_median():
    answers = constant_answers(torch.tensor([2, 2, 1, 0]))
    assert answers["val/accuracy"][1] == 0.5 and answers["val/accuracy_weighted"][1] == pytest.approx(1 / 3)
    assert constant_answers(torch.tensor([0.0, 1.0, 5.0]))["val/mae"][1] == pytest.approx(5 / 3)


def test_class_weights_are_the_shares_of_the_other_classes():
    target = torch.tensor([0, 0, 0, 2])
    assert class_weights(target, 4).tolist() == [0.25, 0.0, 0.75, 0.0]


def test_with_class_weights_both_classes_of_pattern_count_alike():
    """Each class has the same total weight in the loss, so that answering with the common one is worth nothing."""
    task = GraphTask(nn.Identity(), None, num_classes=2, class_weights=True)
    target = torch.tensor([0] * 8 + [1] * 2)
    outputs = torch.zeros(10, 2, requires_grad=True)
    task.loss(outputs, target).backward()
    torch.testing.assert_close(outputs.grad.sum(0), torch.zeros(2))
    GraphTask(nn.Identity(), None, num_classes=2).loss(outputs, target).backward()
    assert outputs.grad.sum(0)[0] < -0.1  # it can fail


def test_losses(config):
    outputs, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    task = GraphTask(nn.Identity(), None, num_classes=4, label_smoothing=0.05)
    log_p = outputs.log_softmax(1)
    expected = -(0.95 * log_p[range(5), target] + 0.05 * log_p.mean(1)).mean()
    assert torch.allclose(task.loss(outputs, target), expected)
    regression = GraphTask(nn.Identity(), None, num_classes=1)
    assert torch.allclose(regression.loss(outputs[:, :1], target), (outputs[:, 0] - target).abs().mean())
    with pytest.raises(UserError, match="protocol"):
        GraphTask(nn.Identity(), None, num_classes=2, protocol="honest")


def test_edge_reconstruction_joins_the_loss(make_graphs):
    from et.graphs.model import GraphEnergyTransformer

    torch.manual_seed(0)
    batch = make_graphs(edge_features=2)
    network = GraphEnergyTransformer(
        3, 2, 2, dim=8, num_heads=2, head_dim=4, num_memories=8, num_eigenvectors=4, edge_reconstruction=True
    ).eval()
    losses = []
    for weight in (0.0, 1.0, 3.0):
        task = GraphTask(network, None, num_classes=2, edge_loss_weight=1.0)
        task.edge_loss_weight = weight
        task.log = lambda *args, **kwargs: None
        losses.append(task.training_step(batch, 0).item())
    error = network.forward_with_edges(batch)[1].mean().item()
    assert losses[1] - losses[0] == pytest.approx(error, rel=1e-4)
    assert losses[2] - losses[0] == pytest.approx(3 * error, rel=1e-4)
    with pytest.raises(UserError, match="go together"):
        GraphTask(network, None, num_classes=2)
    with pytest.raises(UserError, match="go together"):
        GraphTask(nn.Identity(), None, num_classes=2, edge_loss_weight=1.0)


def test_a_long_scoring_says_how_far_it_is(toy_run, monkeypatch, capsys):
    monkeypatch.setattr(lit, "SAY_EVERY", 0.0)
    train(toy_run("protocol=released", "task.repetitions=3", "trainer.max_epochs=1", "callbacks.progress=true"))
    said = capsys.readouterr().out
    assert "scored 1 of 3 times" in said and "scored 2 of 3 times" in said


@pytest.mark.slow
def test_the_released_protocol_on_two_processes(toy_run, forked_processes):
    outcome = train(
        toy_run("protocol=released", "fidelity=released", "task.repetitions=2", "data.batch_size=8",
                "trainer.devices=2", "trainer.strategy=ddp")
    )  # fmt: skip
    assert outcome.record["best_epoch"] is None and outcome.record["steps"] == 2 * 5
    assert 0 <= outcome.record["metrics"]["test/accuracy_all"] <= 1


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(toy_run, forked_processes, tmp_path):
    """With an incomplete last batch, and nothing drawn at random: each process would draw it for itself."""
    settings = ("model.flips=null", "model.noise_std=0", "data.batch_size=8", "optim.optimizer.lr=0.01")
    alone = train(toy_run(*settings, f"paths.runs={tmp_path}/alone"))
    pair = train(toy_run(*settings, "trainer.devices=2", "trainer.strategy=ddp"))
    assert pair.record["device"].startswith("2 x cpu")
    for name in ("run_id", "steps", "dataset"):
        assert pair.record[name] == alone.record[name], name
    assert alone.record["steps"] == 2 * 4, "28 graphs: four steps an epoch, the last with half a batch"
    weights = [
        torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (alone, pair)
    ]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=1e-4, atol=1e-6), name
    for name, value in alone.record["metrics"].items():
        assert pair.record["metrics"][name] == pytest.approx(value, rel=1e-5), name


def test_the_losses_of_processes_count_by_their_samples(make_graphs, monkeypatch):
    task = GraphTask(nn.Identity(), None, num_classes=2)
    assert task._share(5) == 1.0
    monkeypatch.setattr(lit, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(task, "all_gather", lambda own: torch.stack([own, torch.tensor(3.0)]))
    assert float(task._share(5)) == pytest.approx(5 / 4)


def test_held_out_run_is_recorded_with_its_data(toy_run):
    outcome = train(toy_run("data.fold=1"))
    record = outcome.record
    assert set(record["metrics"]) == {"val/accuracy", "val/loss", "test/accuracy", "test/loss"}
    assert record["dataset"]["name"] == "TOY" and record["dataset"]["fold"] == 1
    assert record["task"] == "graphs" and record["protocol"] == "held_out"
    assert record["num_params"] == sum(p.numel() for p in outcome.task.network.parameters())
    assert train(toy_run("data.fold=1")).skipped
    assert not train(toy_run("data.fold=2")).skipped


def test_test_score_is_of_the_best_epochs_weights(toy_run):
    outcome = train(toy_run("trainer.max_epochs=4", "optim.optimizer.lr=0.05"))
    best = torch.load(outcome.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    network = outcome.task.network
    network.load_state_dict({name.removeprefix("network."): value for name, value in best.items()})
    network.eval()
    data = outcome.data
    for part in ("val", "test"):
        batch = data.graphs.select(data.split[part])
        outputs = network(batch)
        accuracy = (outputs.argmax(1) == batch.y).float().mean().item()
        assert outcome.record["metrics"][f"{part}/accuracy"] == pytest.approx(accuracy)
        assert outcome.record["metrics"][f"{part}/loss"] == pytest.approx(F.cross_entropy(outputs, batch.y).item())


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_released_run_is_scored_by_the_released_loop(toy_run, fidelity):
    outcome = train(toy_run("protocol=released", f"fidelity={fidelity}", "task.repetitions=3"))
    metrics, data, network = outcome.record["metrics"], outcome.data, outcome.task.network.eval()
    assert {"test/accuracy", "test/accuracy_std", "test/accuracy_all"} <= set(metrics)
    assert outcome.record["dataset"]["split"] == {"train": 40, "val": 0, "test": 40}
    assert outcome.record["best_epoch"] is None and not (outcome.folder / "checkpoints" / "best.ckpt").exists()
    if fidelity == "paper":  # without noise and padding each graph is either right or wrong, once and for all
        with torch.no_grad():
            right = network(data.graphs).argmax(1) == data.graphs.y
        assert metrics["test/accuracy_all"] == pytest.approx(right.float().mean().item())
        scores = np.array([released_accuracy(right.__getitem__, 40, seed) for seed in range(3)])
        assert metrics["test/accuracy"] == pytest.approx(scores.mean(), abs=1e-6)
        assert metrics["test/accuracy_std"] == pytest.approx(scores.std(), abs=1e-6)


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_gradients_are_centralised_in_training(toy_run, fidelity):
    """AdamW's first moments are means of the gradients it was given: they have no mean either."""
    outcome = train(toy_run(f"fidelity={fidelity}", "model.attention_init_std=0.5"))
    network, state = outcome.task.network, outcome.trainer.optimizers[0].state
    axes = network.centralized_axes()
    assert bool(axes) == (fidelity == "released")
    for name, parameter in network.named_parameters():
        moments = state[parameter]["exp_avg"]
        over = axes.get(name, tuple(range(1, moments.dim())))
        if over and moments.numel() > moments.mean(over).numel():
            assert moments.mean(over).abs().max() < 1e-4 * moments.abs().max(), name
        assert moments.abs().max() > 0, name


def test_resumed_run_is_the_uninterrupted_one(toy_run, tmp_path):
    whole = train(toy_run("trainer.max_epochs=4", "callbacks.save_every_n_epochs=1", f"paths.runs={tmp_path}/whole"))
    cfg = toy_run("trainer.max_epochs=4", "callbacks.save_every_n_epochs=1", f"paths.runs={tmp_path}/cut")

    original = GraphTask.training_step

    def cut(self, batch, index):
        if self.trainer.current_epoch == 2:
            raise Cut
        return original(self, batch, index)

    GraphTask.training_step = cut
    try:
        with pytest.raises(Cut):
            train(cfg)
    finally:
        GraphTask.training_step = original
    resumed = train(cfg)
    assert resumed.record["metrics"] == whole.record["metrics"]
    for mine, theirs in zip(resumed.task.parameters(), whole.task.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.fixture
def noisy_run(toy_run, tmp_path, config):
    """Configuration of a short run that is scored three times with noise, of graphs (``loop``) or of nodes."""

    def build(kind: str, folder: str, *overrides: str):
        settings = ("protocol=released", "fidelity=released", "task.repetitions=3", "model.noise_std=3.0")
        settings = (*settings, "trainer.max_epochs=1", f"paths.runs={tmp_path}/{folder}", *overrides)
        if kind == "loop":
            return toy_run(*settings)
        return config("experiment=gnnbench_cluster_generated", f"paths.data={tmp_path}/data", "data.sizes=[8,4,4]",
                      "data.batch_size=4", *SMALL, *settings)  # fmt: skip

    return build


class Cut(Exception):
    """Stands for whatever ends a process."""


def cut_scoring(monkeypatch, after: int) -> list[int]:
    """Let the scoring end once ``after`` repetitions are done; the list tells which were asked for."""
    asked, original = [], GraphTask._counted

    def counted(self, repetitions, first=0):
        for repetition in original(self, repetitions, first):
            if repetition == after:
                raise Cut
            asked.append(repetition)
            yield repetition

    monkeypatch.setattr(GraphTask, "_counted", counted)
    return asked


@pytest.mark.parametrize("kind", ["loop", "nodes"])
def test_an_interrupted_scoring_continues_and_gives_the_same_numbers(noisy_run, monkeypatch, kind):
    whole = train(noisy_run(kind, "whole"))
    assert whole.record["metrics"]["test/accuracy_std"] > 0
    assert not (whole.folder / "scores.json").exists()
    cfg = noisy_run(kind, "cut")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_scoring(patch, after=2)
        train(cfg)
    asked = cut_scoring(monkeypatch, after=3)
    resumed = train(cfg)
    assert asked == [2]
    assert resumed.record["metrics"] == whole.record["metrics"]
    assert not (resumed.folder / "scores.json").exists()


@pytest.mark.parametrize("change", ["force", "weights", "damaged"])
def test_scores_of_another_state_are_not_taken_up(noisy_run, monkeypatch, change):
    cfg = noisy_run("loop", "cut")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_scoring(patch, after=2)
        train(cfg)
    (file,) = (Path(cfg.paths.runs) / cfg.name).glob("*/scores.json")
    if change == "force":
        cfg.force = True
    elif change == "weights":
        path = file.parent / "checkpoints" / "last.ckpt"
        saved = torch.load(path, weights_only=True)
        next(value for value in saved["state_dict"].values() if value.is_floating_point()).add_(1e-6)
        torch.save(saved, path)
        path.with_name("last.ckpt.sha256").unlink()  # as of a folder without digests: these weights are taken up
    else:
        file.write_text(file.read_text()[:-10])
    asked = cut_scoring(monkeypatch, after=3)
    train(cfg)
    assert asked == [0, 1, 2]


def test_an_interrupted_evaluation_continues(noisy_run, monkeypatch):
    outcome = train(noisy_run("loop", "whole"))
    options = OmegaConf.create({"run": str(outcome.folder), "checkpoint": None, "output": None, "images": None,
                                "mask_seeds": None, "device": "cpu", "progress": False})  # fmt: skip
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_scoring(patch, after=1)
        evaluate(options)
    asked = cut_scoring(monkeypatch, after=3)
    found = evaluate(options)
    assert asked == [1, 2]
    assert found["metrics"]["test/accuracy"] == pytest.approx(outcome.record["metrics"]["test/accuracy"], abs=1e-12)
    asked.clear()
    evaluate(options)
    assert asked == [0, 1, 2], "a finished evaluation is one that can be repeated"


@pytest.mark.parametrize("readout", ["cls", "nodes"])
def test_plain_loaders_of_batches_do_for_training_and_for_scoring(make_graphs, readout):
    batch = make_graphs(level="node" if readout == "nodes" else "graph")
    network = GraphEnergyTransformer(3, 0, 2, readout, 16, 2, 4, 8, 1, num_eigenvectors=4)
    optim = OmegaConf.create({"optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
                              "schedule": {"name": "constant"}})  # fmt: skip
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    task, loader = GraphTask(network, optim, num_classes=2), DataLoader([batch], batch_size=None)
    trainer.fit(task, loader, loader)
    assert ("val/accuracy_weighted" in trainer.callback_metrics) == (readout == "nodes")
    (scores,) = trainer.test(task, loader, verbose=False)
    with torch.no_grad():
        right = network.eval()(batch).argmax(-1) == batch.y
    assert scores["test/accuracy"] == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize("protocol", ["held_out", "released"])
def test_evaluation_of_a_run_repeats_its_test_scores(toy_run, protocol):
    outcome = train(toy_run(f"protocol={protocol}", "task.repetitions=3"))
    options = {"run": str(outcome.folder), "checkpoint": None, "output": None, "images": None, "mask_seeds": None}
    found = evaluate(OmegaConf.create(options | {"device": "cpu", "progress": False}))
    assert found["metrics"]["test/accuracy"] == pytest.approx(outcome.record["metrics"]["test/accuracy"])
    assert found["dataset"] == outcome.record["dataset"]


def test_a_lost_checkpoint_is_not_replaced_by_another(toy_run):
    outcome = train(toy_run())
    (outcome.folder / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match=r"no checkpoint.*best\.ckpt"):
        load_weights(outcome.folder, None)


@pytest.mark.parametrize(
    "experiment, fidelity, batch_size, label_smoothing, noise_std, standardize",
    [
        ("tu_proteins", "paper", 32, 0.05, 0.02, True), ("tu_proteins", "released", 64, 0.05, 0.02, False),
        ("gnnbench_mnist", "paper", 128, 0.0, 0.02, False), ("gnnbench_mnist", "released", 512, 0.05, 0.02, False),
        ("gnnbench_cifar10", "paper", 128, 0.0, 0.02, False), ("gnnbench_cifar10", "released", 512, 0.05, 0.02, False),
        ("gnnbench_pattern", "paper", 128, 0.05, 0.005, False), ("gnnbench_cluster", "paper", 128, 0.05, 0.005, False),
        ("gnnbench_pattern", "released", 128, 0.05, 0.005, False),
        ("zinc", "paper", 128, 0.05, 0.005, True), ("zinc", "released", 1024, 0.05, 0.02, False),
    ],
)  # fmt: skip
def test_what_the_released_notebooks_train_with(
    config, experiment, fidelity, batch_size, label_smoothing, noise_std, standardize
):
    cfg = config(f"experiment={experiment}", f"fidelity={fidelity}")
    data, model = instantiate(cfg.data), instantiate(cfg.model)
    assert (data.batch_size, data.standardize) == (batch_size, standardize)
    assert cfg.task.label_smoothing == label_smoothing and model.noise_std == noise_std
    assert cfg.data.max_nodes == 500  # beyond which the released code leaves nodes out


def test_node_task_reports_both_accuracies_and_repeats_with_noise(config, tmp_path):
    cfg = config(
        "experiment=gnnbench_cluster_generated", f"paths.data={tmp_path}", "data.sizes=[8,4,4]", "data.batch_size=4",
        "trainer.max_epochs=1", "fidelity=released", "protocol=released", "task.repetitions=3", "model.noise_std=3.0",
        *SMALL, "model.num_blocks=2",
    )  # fmt: skip
    metrics = train(cfg).record["metrics"]
    for name in ("accuracy", "accuracy_weighted"):
        assert {f"test/{name}", f"test/{name}_std"} <= set(metrics)
    assert metrics["test/accuracy_std"] > 0


def test_regression_run_minimizes_the_absolute_error(config, monkeypatch, make_graphs, tmp_path):
    from et.graphs import synthetic
    from et.graphs.sources import Source

    graphs = make_graphs(sizes=(4, 6, 5, 7) * 3, features=1, edge_features=1)
    graphs.y.copy_(torch.arange(12))
    split = {"train": torch.arange(6), "val": torch.arange(6, 9), "test": torch.arange(9, 12)}
    graphs = graphs.__class__(**{**graphs.__dict__, "y": graphs.y.float(), "pe": None})
    monkeypatch.setattr(synthetic, "load_zinc_variant", lambda root: Source(graphs, "toy", "0" * 64, split))
    cfg = config(
        "experiment=zinc_variant", f"paths.data={tmp_path}", "trainer.max_epochs=1", "data.batch_size=4", *SMALL
    )
    record = train(cfg).record
    assert set(record["metrics"]) == {"val/mae", "test/mae", "test/mae_constant"}
    assert record["metrics"]["test/mae_constant"] == 8  # answering 2, the median of 0 .. 5
    assert record["metrics"]["test/mae"] > 1  # untrained, on targets 9 .. 11
    assert record["dataset"]["variant"] == "toy"


def test_seeded_leaves_the_generator_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(7, torch.device("cpu")):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(7, torch.device("cpu")):
        assert torch.equal(torch.rand(2), inside)


@pytest.mark.slow
def test_it_learns_rings_from_paths(toy_run, make_tu, tmp_path):
    make_tu(tmp_path / "more", num_graphs=150)
    outcome = train(
        toy_run(
            f"paths.data={tmp_path}/more", "trainer.max_epochs=25", "model.step_size=0.1", "model.num_blocks=2",
            "optim.optimizer.lr=0.01",
        )
    )  # fmt: skip
    assert outcome.record["metrics"]["test/accuracy"] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"repetitions": 0}, "repetitions must be a whole number of at least 1, not 0"),
        ({"repetitions": -1}, "repetitions must be"),
        ({"num_classes": 0}, "num_classes must be"),
        ({"label_smoothing": 1.5}, "must lie between 0 and 1"),
        ({"label_smoothing": -0.1}, "must lie between 0 and 1"),
        ({"edge_loss_weight": -1}, "must not be negative"),
    ),
)
def test_numbers_of_the_task_that_mean_nothing_are_refused(options, message):
    with pytest.raises((ValueError, UserError), match=message):
        GraphTask(nn.Identity(), OmegaConf.create(), **{"num_classes": 2, **options})
