"""Data of one's own that change under the same command are noticed, by finished runs and by interrupted ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from et.runs.fingerprint import check_same_data
from et.runs.identity import resolve
from et.sweeps.cells import inspect
from et.training.run import train
from et.utils.errors import UserError
from tests.anomaly.conftest import make_graph, save_npz


@pytest.fixture
def own(tmp_path: Path, monkeypatch) -> list[str]:
    """Overrides of a small experiment on a graph file that the test may change."""
    monkeypatch.setenv("ET_RUNS_DIR", str(tmp_path / "runs"))
    file = save_npz(make_graph(), tmp_path / "mine.npz")
    return [
        "experiment=demo_anomaly", "data=graph_file", f"data.path={file}", "data.num_nodes=200", "data.num_features=5",
        "model.head_dim=4", "model.num_memories=8", "trainer.max_epochs=2", "trainer.accelerator=cpu",
    ]  # fmt: skip


def change(folder: Path) -> None:
    graph = make_graph()
    save_npz(replace(graph, features=graph.features + 1), folder / "mine.npz")


def test_a_finished_run_is_not_taken_for_one_of_changed_data(config, own, tmp_path):
    first = train(config(*own))
    assert first.record["dataset"]["variant"] == "user data"
    assert train(config(*own)).skipped and inspect(own).state == "done"
    change(tmp_path)
    cell = inspect(own)
    assert cell.state == "failed" and "mine has changed" in cell.message
    with pytest.raises(UserError, match=r"mine has changed since this run was recorded.*force=true"):
        train(config(*own))
    forced = train(config(*own, "force=true"))
    assert forced.record["dataset"]["sha256"] != first.record["dataset"]["sha256"]
    assert train(config(*own)).skipped and inspect(own).state == "done"


def test_an_interrupted_run_does_not_go_on_with_changed_data(config, own, tmp_path):
    first = train(config(*own))
    (first.folder / "result.json").unlink()  # as if it had been stopped after its last checkpoint
    change(tmp_path)
    with pytest.raises(UserError, match=r"the data have changed since .*last\.ckpt.*force=true"):
        train(config(*own))
    save_npz(make_graph(), tmp_path / "mine.npz")
    assert train(config(*own)).record["metrics"] == first.record["metrics"]


def test_own_images_that_stay_and_that_change(config, tmp_path, monkeypatch):
    monkeypatch.setenv("ET_RUNS_DIR", str(tmp_path / "runs"))
    for part, count in (("train", 8), ("val", 2)):
        (tmp_path / "mine" / part).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((70, 70), 60).convert("RGB").save(tmp_path / "mine" / part / f"{number}.png")
    images = [
        "experiment=imagenette_inpainting", "data=imagefolder", "data.source.name=mine", f"paths.data={tmp_path}",
        "data.batch_size=4", "model.dim=16", "model.steps=1", "model.num_memories=8", "trainer.max_epochs=2",
        "data.mask_seeds=1", "trainer.accelerator=cpu", "~callbacks.pictures",
    ]  # fmt: skip
    first = train(config(*images))
    assert first.record["dataset"]["variant"] == "user data"
    assert train(config(*images)).skipped and inspect(images).state == "done"
    Image.effect_noise((80, 80), 60).convert("RGB").save(tmp_path / "mine" / "val" / "0.png")
    assert inspect(images).state == "failed"
    (tmp_path / "mine" / "val" / "0.png").write_bytes(b"no image")  # the number of files is what it was
    with pytest.raises(UserError, match="mine has changed"):
        train(config(*images))


def test_a_finished_run_whose_data_are_gone_is_still_finished(config, own, tmp_path):
    train(config(*own))
    (tmp_path / "mine.npz").unlink()
    assert train(config(*own)).skipped and inspect(own).state == "done"


def test_data_that_cannot_be_read_any_more_are_a_failed_cell(config, own, tmp_path):
    train(config(*own))
    (tmp_path / "mine.npz").write_bytes(b"nothing")
    cell = inspect(own)
    assert cell.state == "failed" and "cannot be read any more" in cell.message


def test_published_data_are_not_read_again(config):
    """What would read them, the absent data section, is not touched."""
    cfg = resolve(config("experiment=amazon_1pct"))
    check_same_data({**cfg, "data": None}, {"dataset": {"variant": "exact", "sha256": "0"}})
