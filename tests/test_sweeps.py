"""Sweeps: which cells they have, what state those are in, and that a sweep skips, retries and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from et import sweeps
from et.errors import UserError
from et.results import paper
from et.results.collect import EXPERIMENTS
from et.results.identity import CONF, config_of
from et.results.record import RESULT_KEYS, run_id, write_result
from et.sweeps import (
    Cell,
    combinations,
    estimate,
    jobs,
    missing_data,
    needed,
    read_failure,
    record_failure,
    recorded_seconds,
    skipped,
)
from tests.configs import TINY

ROOT = Path(__file__).parents[1]
SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("table*.yaml"))
KNOWN = {path.stem for path in (CONF / "experiment").glob("*.yaml")}


def sweep_file(name: str) -> dict:
    return yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text())


def experiments_of(name: str) -> set[str]:
    return {
        value for job in jobs(sweep_file(name)) for key, value in (o.split("=", 1) for o in job) if key == "experiment"
    }


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_called_like_its_file_and_fills_its_table(name):
    table = paper.load(int(name.removeprefix("table")))
    assert sweep_file(name)["sweep"]["name"] == name
    assert not experiments_of(name) - set(table.experiments()), "every run of a sweep has a place in the table"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "sweep").glob("optuna_*.yaml")))
def test_a_search_varies_settings_that_exist(name):
    """Each dimension is a key of the experiments it is for, and its first choice composes."""
    baseline = name.removeprefix("optuna_anomaly").removesuffix("_tuned")
    params = sweep_file(name)["hydra"]["sweeper"]["params"]
    chosen = [f"{key}={value.split('(', 1)[1].split(',')[0].rstrip(')')}" for key, value in params.items()]
    own = OmegaConf.create(config_of([f"experiment=tolokers_40pct{baseline}"]))
    varied = OmegaConf.create(config_of([f"experiment=tolokers_40pct{baseline}", *chosen]))
    for key in params:
        parent, leaf = key.rsplit(".", 1)
        assert leaf in OmegaConf.select(own, parent), key
        assert OmegaConf.select(varied, key) is not None, key


def test_the_search_of_table_6_has_its_ranges():
    params = sweep_file("optuna_anomaly")["hydra"]["sweeper"]["params"]
    assert params == {
        "model.head_dim": "choice(64, 128, 256)",  # Y
        "model.memories_per_dim": "choice(2, 3, 4, 5)",  # K / Y
        "model.steps": "choice(1, 2, 3)",  # T
        "model.num_heads": "choice(1, 2, 3)",  # H
    }


@pytest.mark.parametrize("name", SWEEPS)
def test_every_experiment_of_a_table_that_exists_is_in_its_sweep(name):
    table = paper.load(int(name.removeprefix("table")))
    assert not (set(table.experiments()) & KNOWN) - experiments_of(name)


def test_the_smoke_sweep_has_a_run_of_every_table_that_has_runs():
    measured = [number for number in paper.NUMBERS if any(metric.measured for metric in paper.load(number).metrics)]
    assert measured == [1, 2, 7, 12, 13, 14, 16]
    assert experiments_of("smoke") >= {f"smoke_table{number:02d}" for number in measured}


@pytest.mark.parametrize("name", SWEEPS)
def test_the_first_cell_of_a_sweep_composes(name):
    found = [job for job in jobs(sweep_file(name)) if dict(o.split("=", 1) for o in job)["experiment"] in KNOWN]
    if not found:
        pytest.skip(f"none of the experiments of {name} is there yet")
    config = config_of([*found[0], f"sweep={name}"])
    assert config["fidelity"] == config["sweep"]["fidelity"][config["protocol"]]
    assert run_id(config) == run_id(config_of([*found[0], f"fidelity={config['fidelity']}"]))


def test_released_runs_the_released_model():
    config = config_of(["experiment=amazon_1pct", "protocol=released", "sweep=table01"])
    assert config["fidelity"] == "released"


def test_combinations_are_those_of_hydras_sweeper():
    assert combinations({"seed": "range(0,2)", "experiment": "a, b"}, ["seed=7", "x=1"]) == [
        ["seed=7", "experiment=a", "x=1"], ["seed=7", "experiment=b", "x=1"],
    ]  # fmt: skip


def test_a_rule_skips_what_all_its_patterns_match():
    rules = [{"experiment": "*_mlp", "protocol": "released"}, {"data.fold": "[1-9]", "protocol": "released"}]
    assert skipped(["experiment=a_mlp", "protocol=released"], rules)
    assert not skipped(["experiment=a_mlp", "protocol=held_out"], rules)
    assert skipped(["experiment=a", "protocol=released", "data.fold=3"], rules)
    assert not skipped(["experiment=a", "protocol=released", "data.fold=0"], rules)
    assert not skipped(["experiment=a", "protocol=released"], rules)


def test_folds_and_protocols_of_table_2():
    cells = [dict(o.split("=", 1) for o in job) for job in jobs(sweep_file("table02"))]
    mutag = [(cell["protocol"], cell["data.fold"]) for cell in cells if cell["experiment"] == "tu_mutag"]
    assert sorted(mutag) == sorted([("held_out", str(fold)) for fold in range(10)] + [("released", "0")])


def cell(state: str, experiment: str = "a", seed: int = 0) -> Cell:
    return Cell((f"seed={seed}", f"experiment={experiment}"), experiment, state)


def test_only_what_is_needed_is_launched():
    cells = [
        cell("done", "a", 0),
        cell("done", "a", 1),
        cell("done", "b", 0),
        cell("failed", "b", 1),
        cell("invalid", "c"),
    ]
    assert needed(cells) == {"seed": "1", "experiment": "b"}
    assert needed([cell("done")]) == {}
    assert needed([cell("invalid", "c")]) == {}


def finished(runs: Path, experiment: str, name: str, seconds: float) -> None:
    folder = runs / experiment / name
    folder.mkdir(parents=True)
    write_result(folder, {**dict.fromkeys(RESULT_KEYS, ""), "run_id": name, "seconds": seconds})


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
    monkeypatch.setattr(sweeps, "recorded_seconds", lambda: recorded)
    sweeps.report(cells, "sweep", tmp_path / "runs", verbose=False)
    printed = capsys.readouterr().out
    assert "left: 4 runs, about 37 s of training for 3 of them; 1 without an estimate" in printed
    assert "2 of them are on record in experiments/" in printed


def test_every_recorded_run_has_its_seconds():
    lines = [line for file in EXPERIMENTS.glob("*/results.jsonl") for line in file.read_text().splitlines()]
    assert sum(map(len, recorded_seconds().values())) == len({json.loads(line)["run_id"] for line in lines}) > 0


def test_the_state_of_a_cell_is_read_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ET_RUNS_DIR", str(tmp_path))
    overrides = ["experiment=demo_inpainting", "seed=0"]
    folder = sweeps.inspect(overrides).folder
    assert sweeps.inspect(overrides).state == "open"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    assert sweeps.inspect(overrides).state == "interrupted"
    record_failure(folder, UserError("no data"), overrides)
    assert (sweeps.inspect(overrides).state, sweeps.inspect(overrides).message) == ("failed", "UserError: no data")
    (folder / "result.json").write_text('{"half')
    assert sweeps.inspect(overrides).state == "failed", "half a result is no result"
    assert sweeps.inspect(["experiment=no_such"]).state == "invalid"


def test_a_failure_keeps_the_traceback_of_what_is_no_users_error(tmp_path):
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        record_failure(tmp_path, error, ["a=1"])
    failure = read_failure(tmp_path)
    assert failure["error"] == "ZeroDivisionError" and "test_sweeps.py" in failure["traceback"]
    assert failure["overrides"] == ["a=1"]
    record_failure(tmp_path, UserError("mend this"), [])
    assert read_failure(tmp_path)["traceback"] == ""


def test_a_failure_that_cannot_be_written_does_not_end_the_sweep(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    record_failure(tmp_path / "file" / "folder", ValueError("x"), [])
    assert "could not write" in capsys.readouterr().out


def test_missing_data_are_named_with_who_needs_them(monkeypatch):
    asked = []

    def absent(data):
        asked.append(data["name"])
        return ["put x there"] if data["name"] != "here" else []

    monkeypatch.setattr(sweeps, "absent_files", absent)
    cells = [
        Cell((), name, state, config={"data": {"name": data}})
        for name, state, data in [("a", "open", "x"), ("a", "open", "x"), ("b", "failed", "x"), ("c", "open", "here"),
                                  ("d", "done", "x")]
    ]  # fmt: skip
    assert missing_data(cells) == {"put x there": ["a", "b"]}
    assert asked == ["x", "x", "here"], "each experiment is asked once, finished ones never"


def test_a_constructor_that_misses_its_folder_says_so(tmp_path):
    data = config_of(["experiment=imagenette_inpainting", f"paths.data={tmp_path}"])["data"]
    (message,) = sweeps.absent_files(data)
    assert str(tmp_path) in message


SMALL = (
    "seed=0", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "trainer.check_val_every_n_epoch=1",
    "+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1", "callbacks.progress=false",
)  # fmt: skip
ONE, OTHER = "experiment=demo_inpainting", "experiment=imagenette_inpainting"
BOTH = f"{ONE},imagenette_inpainting"


def started(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("-- ")]


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failure_skips_what_is_finished_and_retries(run_sweep, tmp_path):
    """Two cells: the data of one are not there."""
    status, printed = run_sweep("sweep=table16", "experiment=imagenette_inpainting,demo_inpainting", *SMALL)
    assert status == 1
    assert "1 finished, 1 failed" in printed and len(started(printed)) == 2
    (failure,) = (tmp_path / "runs/imagenette_inpainting").glob("*/failure.json")
    assert "imagenette" in json.loads(failure.read_text())["message"]
    (result,) = (tmp_path / "runs/demo_inpainting").glob("*/result.json")
    written = result.stat().st_mtime_ns

    status, printed = run_sweep("sweep=table16", BOTH, *SMALL)
    assert status == 1
    (only,) = started(printed)
    assert "imagenette_inpainting" in only, "only the failed cell is tried again"
    assert result.stat().st_mtime_ns == written

    status, printed = run_sweep("sweep=table16", ONE, *SMALL)
    assert (status, started(printed)) == (0, [])
    assert "1 finished" in printed


@pytest.mark.slow
def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(run_sweep, tmp_path):
    status, printed = run_sweep("sweep=table16", BOTH, "sweep.dry_run=true", *SMALL)
    assert status == 0
    assert "2 not run yet" in printed and "missing data" in printed and "needed by imagenette_inpainting" in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_experiment_that_does_not_exist_does_not_keep_the_others_from_running(run_sweep):
    status, printed = run_sweep("sweep=table16", f"{ONE},no_such_experiment", *SMALL)
    assert status == 1
    assert "1 finished, 1 cannot be composed" in printed
    assert "Could not find 'experiment/no_such_experiment'" in printed
    (only,) = started(printed)
    assert "demo_inpainting" in only


@pytest.mark.slow
def test_a_killed_sweep_runs_only_what_is_missing(run_sweep, tmp_path):
    """kill -9 after the first of two cells; the second start runs the second one."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    arguments = ["--multirun", "sweep=table16", ONE, *SMALL, "seed=0,1"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith("-- ") and "seed=1" in line:
                break
    finally:
        process.kill()
        process.wait()
    (result,) = (tmp_path / "runs/demo_inpainting").glob("*/result.json")
    written = result.stat().st_mtime_ns
    status, printed = run_sweep(*arguments[1:])
    assert status == 0 and "2 finished" in printed
    (only,) = started(printed)
    assert "seed=1" in only
    assert result.stat().st_mtime_ns == written


@pytest.mark.slow
def test_every_cell_of_the_smoke_sweep_finishes(run_sweep, tmp_path):
    status, printed = run_sweep("sweep=smoke", "callbacks.progress=false")
    assert status == 0, printed
    finished = {path.parents[1].name for path in (tmp_path / "runs").glob("*/*/result.json")}
    assert finished == experiments_of("smoke")


@pytest.mark.slow
def test_a_multirun_without_a_sweep_leaves_hydras_notes_below_the_runs(run_sweep, tmp_path):
    assert run_sweep(*TINY, "trainer.max_epochs=1")[0] == 0
    assert (tmp_path / "runs/sweeps/multirun/multirun.yaml").exists()
    assert not (ROOT / "multirun.yaml").exists()


@pytest.mark.slow
def test_a_sweep_without_multirun_says_what_is_wrong(tmp_path):
    environment = {**os.environ, "ET_RUNS_DIR": str(tmp_path)}
    command = [sys.executable, "train.py", "sweep=table01"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "--multirun sweep=table01" in done.stderr
