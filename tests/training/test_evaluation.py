from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.metrics import roc_auc_score

from et.anomaly.splits import make_split
from et.training.evaluation import evaluate, predict
from et.training.run import train
from et.utils.errors import UserError
from tests.anomaly.conftest import make_graph, save_npz
from tests.configs import ROOT, TINY


def options(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", ["progress=false", "device=cpu", *overrides])


def test_a_run_is_scored_again_with_equal_numbers(config):
    trained = train(config(*TINY))
    record = evaluate(options(f"run={trained.folder}"))
    assert record["metrics"] == trained.record["metrics"]
    assert (trained.folder / "evaluation" / "completions.png").exists()
    assert (trained.folder / "evaluation" / "photo_chelsea.png").exists()


def test_other_images_can_be_completed(config, tmp_path):
    trained = train(config(*TINY))
    (tmp_path / "mine").mkdir()
    Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / "mine" / "noise.png")
    record = evaluate(options(f"run={trained.folder}", f"images={tmp_path}/mine", f"output={tmp_path}/out"))
    assert record["dataset"]["evaluation_images"] == 1 and record["metrics"]["test/mse"] > 0
    assert (tmp_path / "out" / "evaluation.json").exists()


def test_predictions_for_nodes_are_in_the_order_of_the_file_and_give_the_measures(config, tmp_path, monkeypatch):
    graph = make_graph()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))  # far from what the batch's order is
    place = order.argsort()
    graph = replace(
        graph, features=graph.features[order], labels=graph.labels[order],
        relations={name: place[edges] for name, edges in graph.relations.items()},
    )  # fmt: skip
    overrides = [
        "experiment=demo_anomaly", "data=graph_file", f"data.path={save_npz(graph, tmp_path / 'mine.npz')}",
        "data.num_nodes=200", "data.num_features=5", "model.head_dim=4", "model.num_memories=8",
        "trainer.max_epochs=10", "trainer.accelerator=cpu",
    ]  # fmt: skip
    trained = train(config(*overrides))
    monkeypatch.chdir(tmp_path)
    found = predict(trained.folder, device="cpu")
    assert not (tmp_path / "split.npz").exists()
    assert torch.equal(found["label"], graph.labels)
    test = make_split(graph.labels.numpy(), trained.data.train_ratio, 0, "held_out").test
    assert (found["part"] == 3).nonzero()[:, 0].tolist() == test.tolist()
    auc = roc_auc_score(found["label"][test], found["probability"][test])
    assert auc == pytest.approx(trained.record["metrics"]["test/auc"], abs=1e-6)
    record = evaluate(options(f"run={trained.folder}"))
    assert record["metrics"].items() <= trained.record["metrics"].items()
    with np.load(trained.folder / "evaluation" / "predictions.npz") as file:
        assert np.array_equal(file["probability"], found["probability"])
    save_npz(replace(graph, features=graph.features + 1), tmp_path / "mine.npz")
    with pytest.warns(UserWarning, match="mine has changed since"):
        predict(trained.folder, device="cpu")


def test_predictions_for_graphs_are_of_all_of_them_in_order(config):
    overrides = ["trainer.max_epochs=1", "trainer.accelerator=cpu", "model.dim=16", "model.num_memories=8"]
    trained = train(config("experiment=demo_graphs", *overrides))
    found = predict(trained.folder, device="cpu")
    data = trained.data
    assert torch.equal(found["target"], data.graphs.y)
    assert torch.allclose(found["output"].sum(1), torch.ones(len(data.graphs)))
    right = found["output"].argmax(1) == found["target"]
    assert found["part"].bincount().tolist() == [0, *(len(data.split[part]) for part in ("train", "val", "test"))]
    accuracy = right[found["part"] == 3].float().mean().item()
    assert accuracy == pytest.approx(trained.record["metrics"]["test/accuracy"], abs=1e-6)


def test_what_cannot_be_evaluated_is_told(tmp_path):
    with pytest.raises(UserError, match=r"evaluate.py knows run, .*, not data"):
        evaluate(options(f"run={tmp_path}", "+data.path=other.npz"))
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate(options(f"run={tmp_path}/absent.ckpt"))
    with pytest.raises(UserError, match="no run folder"):
        evaluate(options(f"run={tmp_path}"))
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a checkpoint of plain tensors"):
        evaluate(options(f"run={tmp_path}/broken.ckpt"))
