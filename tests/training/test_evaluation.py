import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.metrics import roc_auc_score

from et.anomaly.splits import make_split
from et.training.evaluation import apply_options, evaluate, own_folder, predict
from et.training.run import train
from et.utils.errors import UserError
from tests.anomaly.conftest import make_graph, save_npz
from tests.configs import ROOT, TINY, compose_config


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
    for folder in ("a/mine", "b/mine"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        for name, size in (("noise.png", (100, 90)), ("deep/exact.png", (80, 80))):
            Image.effect_noise(size, 60).convert("RGB").save(tmp_path / folder / name)
    outputs = []
    for folder in ("a/mine", "b/mine", "a/mine"):
        record = evaluate(options(f"run={trained.folder}", f"images={tmp_path}/{folder}", "mask_seeds=2"))
        assert record["dataset"]["evaluation_images"] == 2 and record["metrics"]["test/mse"] > 0
        assert record["fitted"] == {"image_size": 80, "crop_mode": "center", "crop_pct": 1.0}
        outputs.append(Path(record["output"]))
    assert outputs[0] == outputs[2] == trained.folder / "evaluation" / "mine"
    assert outputs[1] != outputs[0] and outputs[1].name.startswith("mine-")
    with (outputs[0] / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [(row["name"], row["mask_seed"]) for row in rows]
    assert names == [("deep/exact.png", "0"), ("noise.png", "0"), ("deep/exact.png", "1"), ("noise.png", "1")]
    mean = sum(float(row["mse"]) for row in rows) / 4
    assert record["metrics"]["test/mse"] == pytest.approx(mean, rel=1e-5)
    descent = json.loads((outputs[0] / "descent.json").read_text())
    assert [picture["name"] for picture in descent["pictures"]] == ["deep/exact.png", "noise.png"]

    # An image of the model's size stays as it is: what was visible in it has its own pixels.
    with Image.open(outputs[0] / "completions" / "deep" / "exact.png.png") as image:
        completed = np.asarray(image).astype(int)
    with Image.open(tmp_path / "a" / "mine" / "deep" / "exact.png") as image:
        difference = np.abs(completed - np.asarray(image)).max(-1).reshape(2, 40, 2, 40).max((1, 3))
    assert (difference == 0).sum() == 2 and (outputs[0] / "completions" / "noise.png.png").exists()


@pytest.mark.parametrize("text", ["", "[1]", "3", "{}", "[" * 5000])
def test_a_damaged_evaluation_is_left_where_it_is(tmp_path, text):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "evaluation.json").write_text(text)
    assert own_folder(tmp_path, Path("there/mine")).name.startswith("mine-")


def test_how_images_are_fitted_can_be_chosen_and_is_checked():
    run = compose_config(*TINY)
    for given, expected in (
        (["crop_mode=squash"], {"crop_mode": "squash", "crop_pct": 1.0}),
        (["crop_pct=0.875"], {"crop_mode": "center", "crop_pct": 0.875}),
    ):
        cfg = run.copy()
        apply_options(options("run=there", "images=here", *given), cfg)
        assert {key: cfg.data.source[key] for key in expected} == expected
    for given, message in (
        (["images=here", "crop_mode=stretch"], "crop_mode must be center"),
        (["images=here", "crop_pct=2"], "crop_pct must be above 0"),
        (["crop_pct=0.5"], "name a folder of images too"),
        (["precision=half"], "trainer.precision must be"),
    ):
        with pytest.raises(UserError, match=message):
            apply_options(options("run=there", *given), run.copy())
    with pytest.raises(UserError, match="not an image experiment"):
        apply_options(options("run=there", "images=here"), compose_config("experiment=demo_anomaly"))


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


def test_an_unfinished_run_says_so_and_that_its_data_changed(config, tmp_path):
    graph = make_graph(200, 5, seed=1)
    file = save_npz(graph, tmp_path / "mine.npz")
    overrides = [
        "experiment=demo_anomaly_mlp", "data=graph_file", f"data.path={file}", "data.num_nodes=200",
        "data.num_features=5", "trainer.max_epochs=2", "trainer.accelerator=cpu",
    ]  # fmt: skip
    trained = train(config(*overrides))
    (trained.folder / "result.json").unlink()
    with pytest.warns(UserWarning) as given:
        predict(trained.folder, device="cpu")
    assert ["is not finished" in str(w.message) for w in given].count(True) == 1
    assert not any("has changed since" in str(w.message) for w in given)
    with pytest.warns(UserWarning, match="is not finished"):
        evaluate(options(f"run={trained.folder}", "precision=bf16-mixed"))
    save_npz(replace(graph, features=graph.features + 1), file)
    with pytest.warns(UserWarning, match="mine has changed since"):
        predict(trained.folder, device="cpu")


def test_a_folder_that_does_not_exist_is_named_as_such(tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        predict(tmp_path / "nothing")


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


def test_what_cannot_be_evaluated_is_told(config, tmp_path):
    with pytest.raises(UserError, match=r"evaluate.py knows run, .*, not data"):
        evaluate(options(f"run={tmp_path}", "+data.path=other.npz"))
    with pytest.raises(UserError, match="no such file or folder"):
        evaluate(options(f"run={tmp_path}/absent.ckpt"))
    with pytest.raises(UserError, match="not a run folder"):
        evaluate(options(f"run={tmp_path}"))
    outcome = train(config(*TINY))
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=r"cannot write the folder .*taken: File exists; set output"):
        evaluate(options(f"run={outcome.folder}", f"output={tmp_path}/taken"))
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a checkpoint of plain tensors"):
        evaluate(options(f"run={tmp_path}/broken.ckpt"))
