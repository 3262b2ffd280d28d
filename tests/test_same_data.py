"""Data of one's own that change under the same command are noticed, by finished runs and by interrupted ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from et.errors import UserError
from et.identity import resolve
from et.same_data import check_same_data
from et.sweep_cells import inspect
from et.training import train
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


def test_published_data_are_not_read_again(config):
    """What would read them, the absent data section, is not touched."""
    cfg = resolve(config("experiment=amazon_1pct"))
    check_same_data({**cfg, "data": None}, {"dataset": {"variant": "exact", "sha256": "0"}})
