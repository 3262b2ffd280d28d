"""python -m et.training.verify: recorded runs are repeated, and a doctored record is told of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from et.anomaly.lit import AnomalyTask, FittedTask
from et.graphs.lit import GraphTask
from et.inpainting.lit import InpaintingTask
from et.results.collect import STALE, Run
from et.runs.identity import Key, config_of
from et.training import verify
from et.training.reproduction import Comparison
from et.training.run import train

TREES = "demo_anomaly_trees"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> dict:
    """The record of a run of trees on data that ship with scikit-learn, as a line of results.jsonl has it."""
    overrides = Key(TREES, 0, "held_out", "paper").overrides()
    cfg = OmegaConf.create(config_of(overrides))
    cfg.paths.runs, cfg.callbacks.progress = str(tmp_path_factory.mktemp("runs")), False
    return {**train(cfg).record, "overrides": overrides}


def experiments(folder: Path, *records: dict) -> Path:
    """A folder of tables whose first one has the records."""
    (folder / "table01").mkdir(parents=True)
    (folder / "table01" / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def run_of(name: str, task: str, seconds: float = 1, params: int = 1, label: str = "", epochs: int = 1) -> Run:
    record = {"run_id": name, "task": task, "seconds": seconds, "num_params": params, "experiment": name}
    record["epochs"] = epochs
    return Run(record, Key(name, 0, "held_out", "paper"), (), label, "somewhere")


def test_a_record_repeats_to_the_last_digit(recorded, tmp_path, capsys):
    assert verify.main(["1", "--experiments", str(experiments(tmp_path, recorded))]) == 0
    printed = capsys.readouterr().out
    assert f"equal: {TREES} held_out seed 0" in printed and printed.endswith("seed 0: 1 equal\n")


def test_a_doctored_record_is_told_of(recorded, tmp_path, capsys):
    metrics = {**recorded["metrics"], "test/auc": recorded["metrics"]["test/auc"] + 1e-4}
    machine = {**recorded["machine"], "threads": 7}
    doctored = {**recorded, "metrics": metrics, "machine": machine, "versions": {**recorded["versions"], "scipy": "0"}}
    assert verify.main(["1", "--experiments", str(experiments(tmp_path, doctored))]) == 1
    printed = capsys.readouterr().out
    assert f"DIFFERS: {TREES}" in printed and "test/auc: recorded " in printed and "test/f1_macro" not in printed
    assert "differs: machine.threads: 7 -> " in printed and "differs: versions.scipy: 0 -> " in printed
    assert "tolerance: 1e-06" in printed


def test_old_records_say_nothing_of_the_machine_and_still_read(recorded, tmp_path, capsys):
    old = {key: value for key, value in recorded.items() if key not in ("machine", "uncommitted_changes")}
    assert verify.main(["1", "--experiments", str(experiments(tmp_path, old))]) == 0
    assert "1 equal" in capsys.readouterr().out


def test_absent_data_and_a_spent_budget_are_reasons_to_skip(recorded, tmp_path):
    key = Key("tolokers_1pct_trees", 0, "held_out", "paper")
    absent = Run({**recorded, "seconds": 0}, key, tuple(key.overrides()), "", "somewhere")
    (verdict,) = verify.verify([absent], tmp_path, tmp_path / "nothing", budget=60)
    assert verdict.state == "skipped" and "data absent: " in str(verdict) and "tolokers" in str(verdict)
    long = replace(absent, record={**absent.record, "seconds": 61})
    (verdict,) = verify.verify([long], tmp_path, None, budget=60)
    assert verdict.state == "skipped" and "budget" in str(verdict)


def test_nothing_repeated_is_no_success(tmp_path, capsys):
    assert verify.main(["1", "--experiments", str(experiments(tmp_path))]) == 1
    assert "nothing was repeated" in capsys.readouterr().err


def test_every_family_gives_records_and_the_seed_chooses_them():
    runs = [run_of(f"{task}{number}", task) for task in ("anomaly", "graphs") for number in range(20)]
    runs += [run_of("trees0", "anomaly", params=0), run_of("long", "inpainting", seconds=100)]
    runs += [run_of("old", "inpainting", label=STALE), run_of("scored", "inpainting", epochs=0)]
    chosen = [run.record["run_id"] for run in verify.sample(runs, 2, 60, seed=3)]
    assert sorted(name.rstrip("0123456789") for name in chosen) == ["anomaly", "anomaly", "graphs", "graphs", "trees"]
    assert len({name.rstrip("0123456789") for name in chosen[:3]}) == 3
    assert chosen == [run.record["run_id"] for run in verify.sample(reversed(runs), 2, 60, seed=3)]
    assert any(chosen != [run.record["run_id"] for run in verify.sample(runs, 2, 60, seed)] for seed in range(4, 9))


@pytest.mark.parametrize(
    ("difference", "circumstances", "state"),
    [
        (0.0, {"versions.torch": ("1", "2")}, "equal"),
        (0.03, {"versions.torch": ("1", "2")}, "agrees"),
        (0.06, {"machine.cpu": (None, "x")}, "DIFFERS"),
        (1e-9, {"git_commit": ("a", "b")}, "DIFFERS"),
        (0.03, {"dataset.sha256": ("a", "b")}, "DIFFERS"),
    ],
)
def test_the_tolerance_is_zero_on_the_same_machine(difference, circumstances, state):
    comparison = Comparison({"test/auc": (0.5, 0.5 + difference)}, circumstances, Path())
    assert verify.judge(run_of("et", "anomaly"), comparison, AnomalyTask.repeat_tolerance).state == state


def test_every_task_of_the_project_has_a_tolerance():
    assert all(0 < task.repeat_tolerance <= 0.15 for task in (AnomalyTask, FittedTask, GraphTask, InpaintingTask))
    assert verify.family_of({"task": "anomaly", "num_params": 0}) not in ("anomaly", "graphs", "inpainting")


def test_losses_and_thresholds_are_compared_on_the_same_machine_only():
    metrics = {"test/accuracy": (0.8, 0.8), "test/loss": (1.0, 2.6), "test/threshold": (0.5, 0.7)}
    elsewhere, same = {"machine.cpu": ("x", "y")}, {"git_commit": ("a", "b")}
    verdicts = [verify.judge(run_of("gin", "graphs"), Comparison(metrics, c, Path()), 0.1) for c in (elsewhere, same)]
    assert [verdict.state for verdict in verdicts] == ["agrees", "DIFFERS"]
