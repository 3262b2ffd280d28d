"""How a sweep stands: estimates, what is on record, missing data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from et.runs.identity import config_of
from et.runs.record import write_result
from et.sweeps import report as sweep_report
from et.sweeps.cells import Cell
from et.sweeps.report import FinishedRun, absent_files, missing_data, recorded_runs, seconds_by_size, seconds_of
from et.utils.paths import EXPERIMENTS
from tests.runs import make_record


def cell(
    state: str, experiment: str = "a", run_id: str = "none", epochs: int = 10, protocol: str = "held_out", *more: str
) -> Cell:
    config = {"protocol": protocol, "trainer": {"max_epochs": epochs}}
    return Cell((f"experiment={experiment}", *more), experiment, state, Path(run_id), config=config)


def finished(runs: Path, name: str, seconds: float, **other: str | int) -> None:
    folder = runs / "a" / name
    folder.mkdir(parents=True)
    overrides = [other.pop("override")] if "override" in other else []
    (folder / "overrides.yaml").write_text("".join(f"- {line}\n" for line in overrides))
    write_result(folder, make_record(run_id=name, seconds=seconds, **{"epochs": 10, "protocol": "held_out", **other}))


def test_the_estimate_is_the_pace_of_finished_runs_of_the_experiment(tmp_path):
    """Under another protocol and with a limited number of batches an epoch is another one."""
    finished(tmp_path, "x", 10)
    finished(tmp_path, "y", 40, epochs=20)
    finished(tmp_path, "z", 7000, protocol="released")
    finished(tmp_path, "w", 1, override="+trainer.limit_train_batches=8")
    cells = [cell("open"), cell("failed", epochs=100), cell("open", "b"), cell("open", protocol="gadbench")]
    assert seconds_of(cells, tmp_path, {}) == [15, 150, None, None]
    assert seconds_of([cell("open", protocol="released")], tmp_path, {}) == [7000]
    assert seconds_of([Cell((), "a", "invalid")], tmp_path, {}) == [None]


def test_runs_of_another_precision_or_batch_size_count_only_without_those_of_the_cell(tmp_path):
    finished(tmp_path, "x", 10)
    finished(tmp_path, "y", 1000, override="trainer.precision=bf16-mixed")
    assert seconds_of([cell("open")], tmp_path, {}) == [10]
    bf16 = cell("open", "a", "none", 10, "held_out", "trainer.precision=bf16-mixed")
    assert seconds_of([bf16], tmp_path, {}) == [1000]
    larger = cell("open", "a", "none", 10, "held_out", "data.batch_size=64", "optim.optimizer.lr=1")
    assert seconds_of([larger], tmp_path, {}) == [(10 + 1000) / 2]


def line(experiment: str, run_id: str, seconds: float, *overrides: str) -> str:
    run = {"experiment": experiment, "run_id": run_id, "protocol": "held_out", "epochs": 10, "seconds": seconds}
    return json.dumps({**run, "overrides": overrides, "device": "cpu"})


def test_the_estimate_and_the_report_know_what_is_on_record(tmp_path, monkeypatch, capsys):
    """Run y is here, too: it counts once."""
    finished(tmp_path / "runs", "y", 20)
    (tmp_path / "table01").mkdir()
    lines = [line("a", "x", 10), line("a", "y", 20), line("b", "z", 7)]
    lines.append(line("a", "v", 1, "trainer.limit_train_batches=1"))
    (tmp_path / "table01" / "results.jsonl").write_text("\n".join([*lines, '{"experiment": "b"}', "{half"]))
    recorded = recorded_runs(tmp_path)
    assert {key: [(run.run_id, run.epoch_seconds) for run in runs] for key, runs in recorded.items()} == {
        ("a", "held_out"): [("x", 1.0), ("y", 2.0), ("v", None)], ("b", "held_out"): [("z", 0.7)],
    }  # fmt: skip
    assert recorded_runs(tmp_path, "b").keys() == {("b", "held_out")}
    cells = [cell("open", "a", "x"), cell("done", "a", "y"), cell("open", "a", "w", 20), cell("failed", "b", "z"),
             cell("open", "c", "u"), cell("interrupted", "a", "v")]  # fmt: skip
    monkeypatch.setattr(sweep_report, "recorded_runs", lambda: recorded)
    sweep_report.report(cells, "sweep", tmp_path / "runs", verbose=True)
    printed = capsys.readouterr().out
    assert "left: 5 runs, up to 67 s of training (scoring not counted) for 4 of them; 1 without an estimate" in printed
    assert "3 of them are on record in experiments/" in printed
    assert "already; the other 2, up to 30 s of training (scoring not counted) for 1 of them; 1 without" in printed
    assert "experiment=a: 1 on record, 1 finished, 1 not run yet, 1 started, not finished, up to 30 s\n" in printed, (
        "by w alone"
    )
    assert "experiment=b: 1 failed\n" in printed and "experiment=c: 1 not run yet\n" in printed


def test_without_a_run_the_speed_of_the_method_on_other_data_counts(monkeypatch, tmp_path, capsys):
    """Sizes are those of table 8, also for data without a run. Per node an epoch takes as long as on other data."""
    here = FinishedRun("x", 2.0, "cpu", data="MUTAG", nodes=3371)
    recorded = {("tu_mutag_gin", "held_out"): [here, FinishedRun("y", None, "cpu", data="ENZYMES", nodes=1)]}
    open_cells = []
    for experiment, data in [("tu_mutagenicity_gin", "Mutagenicity"), ("tu_nci1_gat", "NCI1"), ("tu_mine_gin", "MINE")]:
        config = {"protocol": "held_out", "trainer": {"max_epochs": 10}, "data": {"name": data}}
        open_cells.append(Cell((f"experiment={experiment}",), experiment, "open", Path("z"), config=config))
    seconds, *unknown = seconds_by_size(open_cells, recorded)
    assert seconds == pytest.approx(10 * 2.0 * 4337 * 30.32 / (188 * 17.93), rel=1e-4) and unknown == [None, None]
    monkeypatch.setattr(sweep_report, "recorded_runs", lambda: recorded)
    sweep_report.report(open_cells, "sweep", tmp_path, verbose=True)
    printed = capsys.readouterr().out
    assert "roughly 13 min for 1 by the time per node of their method on other data; 2 without" in printed
    assert "experiment=tu_mutagenicity_gin: 1 not run yet, roughly 13 min\n" in printed
    assert "experiment=tu_nci1_gat: 1 not run yet\n" in printed


def test_every_recorded_run_has_its_seconds():
    lines = [line for file in EXPERIMENTS.glob("*/results.jsonl") for line in file.read_text().splitlines()]
    known = {run.run_id for runs in recorded_runs().values() for run in runs}
    assert known == {json.loads(line)["run_id"] for line in lines} != set()


def test_missing_data_are_named_with_who_needs_them(monkeypatch):
    asked = []

    def absent(data):
        asked.append(data["name"])
        return ["put x there"] if data["name"] != "here" else []

    monkeypatch.setattr(sweep_report, "absent_files", absent)
    cells = [
        Cell((), name, state, config={"data": {"name": data}})
        for name, state, data in [("a", "open", "x"), ("a", "open", "x"), ("b", "failed", "x"), ("c", "open", "here"),
                                  ("d", "done", "x")]
    ]  # fmt: skip
    assert missing_data(cells) == {"put x there": ["a", "b"]}
    assert asked == ["x", "x", "here"], "each experiment is asked once, finished ones never"


def test_a_constructor_that_misses_its_folder_says_so(tmp_path):
    data = config_of(["experiment=imagenette_inpainting", f"paths.data={tmp_path}"])["data"]
    (message,) = absent_files(data)
    assert str(tmp_path) in message
