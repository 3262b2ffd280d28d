"""What wandb and TensorBoard are told of a run, alone and in a sweep."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import CSVLogger

from et.training.loggers import (
    RunInfo,
    RunTensorBoardLogger,
    SteppedWandbLogger,
    build_loggers,
    finish_loggers,
    log_outcome,
    tensorboard_place,
)
from et.training.run import train
from et.utils.errors import UserError
from tests.configs import compose_config
from tests.runs import Stop, stop_in

FOLD = ("experiment=tu_mutag", "data.fold=3", "seed=1")


def run_info(*overrides: str, folder: Path = Path("folder")) -> RunInfo:
    return RunInfo(compose_config(*overrides), folder, "abc123")


def test_a_run_on_its_own_has_no_group_and_the_tags_of_its_cell():
    run = run_info("experiment=amazon_1pct", "seed=2", "protocol=released", "fidelity=released", "tags=[mine]")
    assert run.cell["sweep"] is None
    assert run.tags == ["mine", "amazon_1pct", "released", "fidelity released", "seed 2"]


def test_runs_of_a_sweep_share_its_group_and_differ_in_their_tags():
    run = run_info(*FOLD, "sweep=table02", "protocol=held_out")
    assert run.cell["sweep"] == "table02"
    assert run.tags == ["tu_mutag", "held_out", "fidelity paper", "seed 1", "fold 3"]
    other = run_info("experiment=tu_mutag", "data.fold=4", "seed=1", "sweep=table02", "protocol=held_out")
    assert set(run.tags) ^ set(other.tags) == {"fold 3", "fold 4"}


def test_tensorboard_of_a_sweep_has_one_log_directory(tmp_path):
    alone = run_info(*FOLD, f"paths.runs={tmp_path}")
    assert tensorboard_place(alone) == ("folder", "", "tensorboard")
    swept = run_info(*FOLD, "sweep=table02", "protocol=held_out", f"paths.runs={tmp_path}")
    place = Path(*tensorboard_place(swept))
    assert place == tmp_path / "sweeps/table02/tensorboard/tu_mutag/held_out-seed1-fold3-abc123"


def test_tensorboards_hparams_have_the_cell_and_its_test_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_info(
        *FOLD, "sweep=table02", "protocol=held_out", "logger=tensorboard", f"paths.runs={tmp_path}", "tags=[mine]",
        folder=tmp_path / "run",
    )  # fmt: skip
    loggers = build_loggers(run)
    log_outcome(loggers, run, {"test/accuracy": 0.75})
    loggers[0].finalize("success")
    (events,) = (tmp_path / "sweeps/table02/tensorboard").glob("**/events.*")
    read = EventAccumulator(str(events.parent)).Reload()
    assert read.Scalars("test/accuracy")[0].value == 0.75
    start = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"tu_mutag" in start and b"held_out" in start and b"mine" in start
    assert run.cell["sweep"] == "table02"


def test_several_loggers_at_once_and_one_of_lightnings_own(tmp_path):
    pytest.importorskip("wandb")
    own = "+logger.mine={_target_: pytorch_lightning.loggers.CSVLogger, name: mine}"
    run = run_info(*FOLD, "logger=[csv,tensorboard,wandb]", own, f"paths.runs={tmp_path}", folder=tmp_path / "run")
    tensorboard, wandb, mine = build_loggers(run)
    assert isinstance(tensorboard, RunTensorBoardLogger) and Path(tensorboard.log_dir) == tmp_path / "run/tensorboard"
    assert isinstance(wandb, SteppedWandbLogger) and wandb.version == "abc123"
    assert isinstance(mine, CSVLogger) and Path(mine.save_dir) == tmp_path / "run" and mine.name == "mine"
    assert build_loggers(run_info(*FOLD, "logger=csv")) == []  # metrics.csv is kept without being asked for


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format behind a header of 7 bytes."""
    data, place, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # a block's end is padded
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def read_wandb(folder: Path) -> dict[str, Any]:
    """What is in an offline run's file: id, group, tags, configuration, exit code, and the history row by row."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    found = {"history": [], "exit": None}
    for data in wandb_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config = {item.key: json.loads(item.value_json) for item in run.config.update}
            found |= {"id": run.run_id, "group": run.run_group, "job": run.job_type, "tags": list(run.tags)}
            found |= {"name": run.display_name, "config": config}
        elif kind == "history":
            items = record.history.item
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            found["history"].append({**row, "_step": record.history.step.num})
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def values(run: dict[str, Any], name: str) -> dict[int, float]:
    return {row["_step"]: row[name] for row in run["history"] if name in row}


def in_metrics_file(folder: Path, name: str) -> dict[int, float]:
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def test_each_run_of_one_process_has_its_own_wandb_run_and_a_resumed_one_goes_on(tiny, monkeypatch, tmp_path):
    """Three runs: one that finishes, one that fails and is resumed, one whose loss is not finite. Read back offline."""
    wandb = pytest.importorskip("wandb")
    options = ("logger=wandb", "trainer.log_every_n_steps=1", "callbacks.monitor=val/mse", "tags=[mine]")
    first = train(tiny(*options))
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_in(patched, 2)
        train(tiny(*options, "seed=1"))
    second = train(tiny(*options, "seed=1"))
    with pytest.raises(UserError, match="the loss is"):
        train(tiny(*options, "optim.optimizer.lr=1e30", "optim.schedule.warmup_epochs=0"))

    (alone,) = (read_wandb(path) for path in (first.folder / "wandb").glob("offline-run-*"))
    assert alone["id"] == first.record["run_id"] and alone["exit"] == 0
    assert alone["name"] == "demo_inpainting-held_out-paper-0" and alone["group"] == "demo_inpainting"
    assert alone["job"] == "held_out" and "mine" in alone["tags"] and "seed 0" in alone["tags"]
    assert alone["config"]["model"]["num_heads"] == 2
    for name in ("train/loss", "val/mse", "test/mse"):
        expected = in_metrics_file(first.folder, name)
        assert expected and values(alone, name) == pytest.approx(expected, rel=1e-6), name

    parts = sorted((second.folder / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
    before, after = map(read_wandb, parts)
    assert before["id"] == after["id"] == second.record["run_id"] != alone["id"]
    assert before["exit"] == 1 and after["exit"] == 0
    assert min(values(after, "train/loss")) == 6, "the resumed run goes on with its third epoch's first step"
    both = {**values(before, "train/loss"), **values(after, "train/loss")}
    assert both == pytest.approx(in_metrics_file(second.folder, "train/loss"), rel=1e-6)
    assert wandb.run is None, "the run whose loss was not finite is ended, too"


def test_a_wandb_run_of_the_callers_own_stays_open(tmp_path):
    wandb = pytest.importorskip("wandb")
    own = wandb.init(mode="offline", dir=tmp_path, id="mine")
    try:
        loggers = build_loggers(run_info(*FOLD, "logger=wandb", folder=tmp_path))
        finish_loggers(loggers, "abc123")
        assert wandb.run is own
        finish_loggers(loggers, "mine")
        assert wandb.run is None
    finally:
        own.finish()
