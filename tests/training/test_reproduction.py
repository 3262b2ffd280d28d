"""train.py --from-run: a recorded run comes out the same, and what does not belong to it is refused."""

import json
import runpy
import sys

import pytest
from omegaconf import OmegaConf

from et.runs.record import read_result, write_result
from et.training.reproduction import circumstances, metrics_agree, recorded_run, repeat
from et.training.run import train
from et.utils.errors import UserError
from tests.configs import ROOT, TINY
from tests.runs import make_record


@pytest.fixture
def finished(config):
    return train(config(*TINY)).folder


def test_a_run_is_repeated_from_its_record(finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--from-run", str(finished), "callbacks.progress=false"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert left.value.code == 0 and "equal, bit for bit" in printed
    runs = finished.parents[1]
    assert (runs.with_name(f"{runs.name}-repeated") / "demo_inpainting" / finished.name / "result.json").exists()


def test_a_run_that_comes_out_otherwise_is_told_of(finished, monkeypatch, capsys):
    record = read_result(finished)
    record["metrics"]["test/mse"] *= 1.1
    record["versions"]["torch"] = "1.0"
    write_result(finished, record)
    monkeypatch.setattr(sys, "argv", ["train.py", "--from-run", str(finished / "result.json")])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert left.value.code == 1 and "the metrics are DIFFERENT" in printed
    assert "differs: versions.torch: 1.0 -> " in printed


def test_what_is_no_run_or_another_one_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match="not the record of a finished run"):
        repeat(tmp_path)
    with pytest.raises(UserError, match=r"seed: that would be another run"):
        repeat(finished, ["seed=4"])
    cfg = OmegaConf.load(finished / "config.yaml")
    cfg.seed = 3
    OmegaConf.save(cfg, finished / "config.yaml")
    with pytest.raises(UserError, match="they do not belong together"):
        recorded_run(finished)
    (tmp_path / "half.json").write_text("{}")
    with pytest.raises(UserError, match="not a complete record"):
        recorded_run(tmp_path / "half.json")


def test_a_record_alone_is_composed_from_todays_files(config, tmp_path):
    from et.runs.identity import resolve
    from et.runs.record import run_id

    identity = run_id(resolve(config("experiment=tu_mutag", "seed=1", "data.fold=3")))
    record = make_record(
        experiment="tu_mutag", seed=1, protocol="held_out", fidelity="paper", run_id=identity, dataset={"fold": 3}
    )
    (tmp_path / "result.json").write_text(json.dumps(record))
    _, cfg = recorded_run(tmp_path / "result.json")
    assert cfg.data.fold == 3 and cfg.seed == 1
    record["run_id"] = "other"
    (tmp_path / "result.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="today's configuration files give run"):
        recorded_run(tmp_path)


def test_when_metrics_agree():
    assert (
        metrics_agree(0.5, 0.5, 0) and metrics_agree(float("nan"), float("nan"), 0) and metrics_agree(1.0, 1.0009, 1e-3)
    )
    assert (
        not metrics_agree(0.5, 0.51, 1e-3)
        and not metrics_agree(0.5, None, 1)
        and not metrics_agree(float("nan"), 0.5, 1)
    )
    assert metrics_agree(None, 0.5, 0), "a metric that the record lacks is newer than it"


def test_circumstances_are_what_differs():
    one = {"device": "cpu", "git_commit": "a", "num_params": 1, "epochs": 2, "versions": {"torch": "1"}, "dataset": {}}
    assert circumstances(one, one) == {}
    other = {**one, "git_commit": "b", "dataset": {"sha256": "x"}}
    assert circumstances(one, other) == {"git_commit": ("a", "b"), "dataset.sha256": (None, "x")}
