"""Finding and loading a finished run."""

from __future__ import annotations

import os

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from et.runs.identity import config_of
from et.runs.loading import fill, find_run, load_run, own_run
from et.runs.record import run_dir, run_id, write_result
from et.training.evaluation import predict
from et.training.reproduction import recorded_run
from et.utils.errors import UserError
from tests.runs import make_record


def test_of_a_folder_of_runs_the_last_started_is_found(tmp_path):
    for name, seconds in (("old", 1000), ("new", 2000), ("older", 500)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
        os.utime(tmp_path / name / "config.yaml", (seconds, seconds))
    assert find_run(tmp_path) == find_run(tmp_path / "new") == tmp_path / "new"
    assert find_run(tmp_path / "old") == tmp_path / "old"
    assert find_run(tmp_path / "nothing") == tmp_path / "nothing"
    (tmp_path / "older" / "checkpoints").mkdir()
    (tmp_path / "older" / "checkpoints" / "last.ckpt").touch()
    assert find_run(tmp_path) == tmp_path / "older", "the others have nothing to load"


def test_an_experiments_own_run_is_not_its_newest(monkeypatch, tmp_path):
    monkeypatch.setenv("ET_RUNS_DIR", str(tmp_path))
    config = config_of(["experiment=demo_inpainting"])
    own = run_dir(tmp_path, "demo_inpainting", run_id(config))
    assert own_run("experiment=demo_inpainting") == own
    assert run_id(config_of(["experiment=demo_inpainting", "trainer.max_epochs=4"])) != own.name


def test_an_experiments_folder_lists_its_runs(tmp_path):
    """For evaluate.py and --from-run, which take one run."""
    for seed, finished in ((0, True), (1, False)):
        config = config_of(["experiment=demo_graphs", f"seed={seed}"])
        folder = run_dir(tmp_path, "demo_graphs", run_id(config))
        folder.mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        if finished:
            write_result(folder, make_record(run_id=run_id(config)))
    (tmp_path / "demo_graphs" / "broken").mkdir()
    (tmp_path / "demo_graphs" / "broken" / "config.yaml").write_text("[")
    for read in (load_run, recorded_run):
        with pytest.raises(UserError) as caught:
            read(tmp_path / "demo_graphs")
        told = str(caught.value).splitlines()
        assert len(told) == 3 and "name one:" in told[0]
        assert "seed 0, protocol held_out, fidelity paper, fold 0" in told[1] and told[1].endswith(", finished")
        assert "seed 1" in told[2] and told[2].endswith("not finished")


def test_what_cannot_be_loaded_is_told(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        load_run(tmp_path / "no.ckpt")
    (tmp_path / "odd.ckpt").write_bytes(b"odd")
    with pytest.raises(UserError, match="not a checkpoint of plain tensors"):
        load_run(tmp_path / "odd.ckpt")
    torch.save({"weights": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="it lacks state_dict"):
        load_run(tmp_path / "other.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match="holds no configuration"):
        load_run(tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match="do not fit the configuration of RUN"):
        fill(nn.Linear(2, 2), {"weight": torch.zeros(3, 2)}, "RUN")


@pytest.mark.parametrize(
    ("section", "node", "message"),
    (
        ("model", {"_target_": "torch.optim.Adam"}, "model: Adam needs 'params'"),
        ("model", {"_target_": "torch.optim.Adam", "params": []}, "does not build its model .*: ValueError"),
        ("model", {"_target_": "et.core.nothing.At"}, "which is not called"),
        ("model", {"_target_": "pytorch_lightning.callbacks.DeviceStatsMonitor"}, "which is not a Module"),
        ("data", {"_target_": "et.baselines.node_mlp.NodeMLP", "in_features": 2, "hidden": 2, "layers": 2},
         "which is not a LightningDataModule"),
        ("task", {"_target_": "et.graphs.model.GraphEnergyTransformer.of_fidelity"}, "must derive from"),
        ("trainer", {"precision": "half"}, "trainer.precision must be"),
    ),
)  # fmt: skip
def test_a_configuration_that_does_not_build_is_told(tmp_path, section, node, message):
    config = {**config_of(["experiment=demo_graphs"]), section: node}
    torch.save({"state_dict": {}, "config": config}, tmp_path / "theirs.ckpt")
    with pytest.raises(UserError, match=message):
        predict(tmp_path / "theirs.ckpt", device="cpu")
