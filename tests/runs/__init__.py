"""Runs of the tiny demo: stopped in the middle, compared with each other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback

from et.inpainting.lit import InpaintingTask
from et.runs.record import RESULT_KEYS
from et.training.run import Outcome


class Stop(RuntimeError):
    """Stands for whatever ends a process."""


class Sleepy(Callback):
    """Lets every batch take a while, so that a run takes long on a fast machine too."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(self.seconds)


def stop_in(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Let training end in the middle of an epoch."""
    original = InpaintingTask.training_step

    def step(self, batch, batch_index):
        if self.trainer.current_epoch == epoch and batch_index == 1:
            raise Stop
        return original(self, batch, batch_index)

    monkeypatch.setattr(InpaintingTask, "training_step", step)


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    """The state dict of a run folder's checkpoint."""
    return torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]


def make_record(**changes: Any) -> dict[str, Any]:
    """A whole record with nothing in it but ``changes``."""
    record: dict[str, Any] = {**dict.fromkeys(RESULT_KEYS, ""), "seed": 0, "num_params": 1, "epochs": 1, "seconds": 1.0}
    return record | {"peak_memory_mb": 1.0, "dataset": {}, "metrics": {}, "versions": {}, **changes}


def assert_same_run(first: Outcome, second: Outcome) -> None:
    assert first.record["metrics"] == second.record["metrics"]
    assert first.record["steps"] == second.record["steps"]
    for name, value in weights(first.folder).items():
        assert torch.equal(value, weights(second.folder)[name]), name
