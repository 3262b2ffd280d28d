"""How a sweep stands: estimates, what is on record, missing data."""

from __future__ import annotations

import json
from pathlib import Path

from et.runs.identity import config_of
from et.runs.record import write_result
from et.sweeps import report as sweep_report
from et.sweeps.cells import Cell
from et.sweeps.report import absent_files, estimate, missing_data, recorded_seconds
from et.utils.paths import EXPERIMENTS
from tests.runs import make_record


def cell(state: str, experiment: str = "a", seed: int = 0) -> Cell:
    return Cell((f"seed={seed}", f"experiment={experiment}"), experiment, state)


def finished(runs: Path, experiment: str, name: str, seconds: float) -> None:
    folder = runs / experiment / name
    folder.mkdir(parents=True)
    write_result(folder, make_record(run_id=name, seconds=seconds))


def test_the_estimate_is_from_finished_runs_of_the_same_experiment(tmp_path):
    finished(tmp_path, "a", "x", 10)
    finished(tmp_path, "a", "y", 20)
    cells = [cell("done"), cell("open", seed=1), cell("failed", seed=2), cell("open", "b")]
    assert estimate(cells, tmp_path, {}) == (30, 1)


def test_the_estimate_and_the_report_know_what_is_on_record(tmp_path, monkeypatch, capsys):
    """Run y is here, too: its time here counts, and counts once."""
    finished(tmp_path / "runs", "a", "y", 20)
    (tmp_path / "table01").mkdir()
    lines = [{"experiment": "a", "run_id": "x", "seconds": 10}, {"experiment": "a", "run_id": "y", "seconds": 99},
             {"experiment": "b", "run_id": "z", "seconds": 7}, {"experiment": "b"}]  # fmt: skip
    (tmp_path / "table01" / "results.jsonl").write_text("\n".join([*map(json.dumps, lines), "{half"]))
    recorded = recorded_seconds(tmp_path)
    assert recorded == {"a": {"x": 10, "y": 99}, "b": {"z": 7}}
    cells = [
        Cell((f"seed={number}",), name, state, tmp_path / identity)
        for number, (name, state, identity) in enumerate(
            [("a", "open", "x"), ("a", "done", "y"), ("a", "open", "w"), ("b", "failed", "z"), ("c", "open", "v")]
        )
    ]
    assert estimate(cells, tmp_path / "runs", recorded) == (15 + 15 + 7, 1)
    monkeypatch.setattr(sweep_report, "recorded_seconds", lambda: recorded)
    sweep_report.report(cells, "sweep", tmp_path / "runs", verbose=False)
    printed = capsys.readouterr().out
    assert "left: 4 runs, about 37 s of training for 3 of them; 1 without an estimate" in printed
    assert "2 of them are on record in experiments/" in printed


def test_every_recorded_run_has_its_seconds():
    lines = [line for file in EXPERIMENTS.glob("*/results.jsonl") for line in file.read_text().splitlines()]
    assert sum(map(len, recorded_seconds().values())) == len({json.loads(line)["run_id"] for line in lines}) > 0


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
