"""The lines of a run on the terminal."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from rich import get_console
from torch import nn

from et.training.task import Task
from et.training.terminal import ProgressBar, TerminalLog, duration, expected_time


class Targets(Task):
    """A task whose trivial answer is the mean of the targets that its batches are."""

    def trivial_inputs(self, batch):
        return batch

    @classmethod
    def trivial_answers(cls, inputs):
        return {"val/accuracy": ("the mean", float(inputs.mean()))}


def trainer(epoch: int, **metrics: float) -> SimpleNamespace:
    """What the callback reads of Lightning's trainer, in ``epoch`` counted from 0."""
    return SimpleNamespace(
        is_global_zero=True, sanity_checking=False, current_epoch=epoch, max_epochs=12, world_size=1,
        state=SimpleNamespace(fn="fit"), strategy=SimpleNamespace(root_device=torch.device("cpu")),
        callback_metrics={name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()},
    )  # fmt: skip


def lines(capsys) -> list[str]:
    get_console().file.flush()
    return capsys.readouterr().out.splitlines()


def test_header_and_lines_count_epochs_from_one(tmp_path, capsys):
    log = TerminalLog("tu_mutag", "held_out · seed 0", tmp_path, "val/accuracy", "max", experiments=tmp_path)
    module = Targets(nn.Linear(3, 2), None)
    log.on_train_start(trainer(0), module)
    header = "\n".join(lines(capsys))
    assert "tu_mutag · held_out · seed 0" in header and "parameters  8" in header and "epochs      12" in header
    assert str(tmp_path) in header
    for batch in ([0.0, 1.0], [1.0]):
        log.on_validation_batch_end(trainer(0), module, None, torch.tensor(batch), 0)
    found = []
    for epoch, accuracy in enumerate((0.8, 0.7, 0.9)):
        log.on_validation_end(trainer(epoch, val_accuracy=accuracy), module)
        found += lines(capsys)
        log.on_validation_batch_end(trainer(epoch + 1), module, None, torch.zeros(9), 0)  # the first validation counts
    assert all(f"{number} of 12" in line for number, line in enumerate(found, 1))
    assert all("the mean: 0.6667" in line for line in found)
    assert ["best so far" in line for line in found] == [True, False, True] and "best 0.8000" in found[1]


def test_the_first_epoch_does_not_count_in_the_time_left(tmp_path, capsys, monkeypatch):
    log, module = TerminalLog("x", "", tmp_path, "val/mse"), SimpleNamespace(network=nn.Linear(1, 1))
    clock = iter([0.0, 600.0, 610.0, 620.0])  # kernels are compiled in the first epoch
    monkeypatch.setattr("et.training.terminal.time.monotonic", lambda: next(clock))
    log.on_train_start(trainer(0), module)
    lines(capsys)
    left = []
    for epoch in range(3):
        log.on_validation_end(trainer(epoch, val_mse=1.0), module)
        left += [line.rpartition(", ")[2] for line in lines(capsys)]
    assert left == ["at most 1.8 h left", "about 2 min left", "about 2 min left"]


def test_other_processes_and_sanity_checks_print_nothing(tmp_path, capsys):
    log, module = TerminalLog("x", "", tmp_path, "val/mse"), Task(nn.Linear(1, 1), None)
    for change in ({"is_global_zero": False}, {"sanity_checking": True}, {"state": SimpleNamespace(fn="validate")}):
        log.on_validation_end(SimpleNamespace(**{**vars(trainer(0, val_mse=1.0)), **change}), module)
    assert lines(capsys) == []


def test_the_expected_time_comes_from_records_of_the_same_experiment(tmp_path):
    (tmp_path / "table02").mkdir()
    own = {"experiment": "a", "protocol": "held_out", "run_id": "x", "epochs": 10, "seconds": 600,
           "device": "cpu (2 threads)"}  # fmt: skip
    others = [{"experiment": "a_gin", "seconds": 6}, {"protocol": "released", "seconds": 9000},
              {"seconds": 6, "overrides": ["+trainer.limit_train_batches=2"]}]  # fmt: skip
    records = [own, *(own | other for other in others)]
    damaged = ['{"experiment": "a", "epo', '{"experiment": "a"}', json.dumps(own | {"epochs": 0})]
    (tmp_path / "table02/results.jsonl").write_text("\n".join([*map(json.dumps, records), *damaged]))
    expected = "about 5 min at the speed of recorded runs on cpu (2 threads)"
    assert expected_time("a", "held_out", 5, tmp_path) == expected
    assert "first validation" in expected_time("b", "held_out", 5, tmp_path)


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_bar_counts_epochs_from_one():
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=3)
    assert bar._get_train_description(0).startswith("Epoch 1 of 3")
