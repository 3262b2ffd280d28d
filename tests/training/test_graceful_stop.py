"""A signal stops a run at a batch with its state saved, and the resumed run ends as an uninterrupted one does."""

import os
import random
import signal

import numpy as np
import pytest
import torch

from et.graphs.lit import GraphTask
from et.inpainting.lit import InpaintingTask
from et.sweeps.callback import end_if_told_to
from et.training.callbacks import Checkpoints
from et.training.graceful_stop import SIGNALS, StopOnSignal, generator_state, set_generators
from et.training.run import train
from et.utils.errors import Interrupted, UserError
from tests.configs import TINY
from tests.runs import weights

# A graph network with dropout: the state of the random generators matters. Eight batches an epoch.
GRAPHS = (
    "experiment=demo_graphs", "model.dim=16", "model.num_heads=2", "model.head_dim=8", "model.num_memories=16",
    "trainer.max_epochs=3", "+trainer.limit_train_batches=8", "+trainer.limit_val_batches=1",
    "+trainer.limit_test_batches=2", "trainer.accelerator=cpu",
)  # fmt: skip


def signal_at(monkeypatch, task, epoch, batch, signum):
    """Let this process be sent a signal while it works on a batch."""
    original = task.training_step

    def step(self, data, batch_index):
        if (self.trainer.current_epoch, batch_index) == (epoch, batch):
            os.kill(os.getpid(), signum)
        return original(self, data, batch_index)

    monkeypatch.setattr(task, "training_step", step)


def check_stop_and_resume(config, whole_run, tmp_path, monkeypatch, task, overrides, batch, signum, steps):
    whole = whole_run(*overrides)
    before = [signal.getsignal(number) for number in SIGNALS]
    with monkeypatch.context() as patched, pytest.raises(Interrupted) as stopped:
        signal_at(patched, task, 1, batch, signum)
        train(config(*overrides))
    assert [signal.getsignal(number) for number in SIGNALS] == before
    folder = next((tmp_path / "runs").glob("*/*"))
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == steps
    assert not (folder / "result.json").exists()
    resumed = train(config(*overrides))
    assert resumed.record["metrics"] == whole.record["metrics"]
    assert resumed.record["steps"] == whole.record["steps"]
    for name, value in weights(whole.folder).items():
        assert torch.equal(value, weights(resumed.folder)[name]), name
    return stopped.value


@pytest.mark.parametrize(("batch", "steps"), ((1, 5), (2, 6)), ids=("mid-epoch", "last batch"))
def test_images(config, whole_run, tmp_path, monkeypatch, batch, steps):
    """Three batches an epoch; in the last one the run goes on to the end of the epoch."""
    stop = check_stop_and_resume(
        config, whole_run, tmp_path, monkeypatch, InpaintingTask, TINY, batch, signal.SIGTERM, steps
    )
    assert stop.code == 143


def test_gradients_that_are_being_accumulated_are_not_lost(config, whole_run, tmp_path, monkeypatch):
    """Told in the first of two batches that make a step, the run stops after the second."""
    overrides = (*TINY, "+trainer.accumulate_grad_batches=2")
    check_stop_and_resume(config, whole_run, tmp_path, monkeypatch, InpaintingTask, overrides, 0, signal.SIGTERM, 3)


def test_loader_processes(config, whole_run, tmp_path, monkeypatch):
    overrides = (*TINY, "data.num_workers=1")
    stop = check_stop_and_resume(
        config, whole_run, tmp_path, monkeypatch, InpaintingTask, overrides, 0, signal.SIGINT, 4
    )
    assert stop.code == 130


def test_graphs_with_dropout(config, whole_run, tmp_path, monkeypatch):
    stop = check_stop_and_resume(config, whole_run, tmp_path, monkeypatch, GraphTask, GRAPHS, 4, signal.SIGUSR1, 13)
    assert stop.code == Interrupted.RESUMABLE


def test_dropout_resumes_at_an_epoch(config, whole_run, tmp_path, monkeypatch):
    check_stop_and_resume(config, whole_run, tmp_path, monkeypatch, GraphTask, GRAPHS, 7, signal.SIGUSR1, 16)


def test_the_handler_of_before_is_called_once_the_state_is_saved(config, tmp_path, monkeypatch):
    """Submitit's handler requeues the job and leaves with SystemExit."""
    seen = []

    def requeue(signum, frame):
        seen.append((signum, [path.name for path in (tmp_path / "runs").rglob("last.ckpt")]))
        raise SystemExit(7)

    former = signal.signal(signal.SIGUSR2, requeue)
    try:
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as left:
            signal_at(patched, InpaintingTask, 0, 0, signal.SIGUSR2)
            train(config(*TINY))
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert left.value.code == 7
    assert seen == [(signal.SIGUSR2, ["last.ckpt"])]


def test_a_signal_during_the_test_leaves_the_training_done(config, monkeypatch):
    original = InpaintingTask.test_step

    def step(self, batch, batch_index):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_index)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(InpaintingTask, "test_step", step)
        train(config(*TINY))
    assert train(config(*TINY)).record["epochs"] == 3


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_that_cannot_save_says_so_and_ends_a_sweep(config, monkeypatch, signum):
    """A failed run does not end a sweep, and a signal does. The status is 1: on 75 Slurm would start it again."""

    def full(self, trainer):
        raise UserError("cannot write last.ckpt: the disk is full")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="the disk is full") as failed:
        signal_at(patched, InpaintingTask, 0, 0, signum)
        patched.setattr(Checkpoints, "save_last", full)
        train(config(*TINY))
    assert failed.value.stopped_by == signum
    with pytest.raises(SystemExit) as left:
        end_if_told_to(failed.value)
    assert left.value.code == 1
    end_if_told_to(UserError("no such file"))  # a failure without a signal ends nothing


def test_generators_come_back():
    state = generator_state()

    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random(), random.gauss(0, 1)]

    first = draw()
    assert draw() != first
    set_generators(state)
    assert draw() == first


def test_what_a_stop_says():
    assert "SIGTERM" in str(Interrupted(signal.SIGTERM)) and Interrupted(signal.SIGTERM).code == 143
    assert not issubclass(Interrupted, UserError), "a sweep must not go on to its next cell"


def test_a_second_ctrl_c_ends_at_once(capfd):
    stop = StopOnSignal(checkpoints=None)
    stop._note(signal.SIGINT, None)
    with pytest.raises(SystemExit) as left:
        stop._note(signal.SIGINT, None)
    assert left.value.code == 130 and "SIGINT" in capfd.readouterr().err
