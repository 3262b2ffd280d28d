"""Distributed runs on this machine: two processes compute what one does, and leave what one leaves."""

import csv
import json
import os
import signal
import threading
import time

import pytest
import torch

from et.training import launched, launcher, train
from et.training.launcher import local_processes, must_start_processes, raise_failure, under_srun
from et.utils.errors import Interrupted, UserError
from tests.configs import TINY
from tests.runs import weights

PAIR = ("trainer.devices=2", "trainer.strategy=ddp")


@pytest.fixture
def tiny(config):
    # 3 samples a process and step: of the 55 windows one process scores 10 batches, the other 9.
    return lambda *overrides: config(*TINY, "data.batch_size=6", *overrides)


@pytest.mark.parametrize(
    ("devices", "accelerator", "count"),
    ((1, "auto", 1), (2, "cpu", 2), ("2", "cpu", 2), ([0, 2], "gpu", 2), ("0,3,5", "gpu", 3), ("auto", "cpu", 1),
     (-1, "cpu", 1)),
)  # fmt: skip
def test_one_process_a_device(devices, accelerator, count):
    assert local_processes({"devices": devices, "accelerator": accelerator}) == count


def test_who_starts_the_processes(monkeypatch):
    for name in ("SLURM_STEP_ID", "SLURM_NTASKS", launcher.OWN):
        monkeypatch.delenv(name, raising=False)
    two = {"devices": 2, "num_nodes": 1, "accelerator": "cpu"}
    assert must_start_processes(two)
    with pytest.raises(UserError, match="start the run on every node with srun"):
        must_start_processes({**two, "num_nodes": 2})
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert must_start_processes(two), "one task of two devices starts the other process itself"
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert under_srun() and not must_start_processes({**two, "num_nodes": 2})
    with pytest.raises(UserError, match="srun started 4 processes, the run is for 1 nodes x 2 devices"):
        must_start_processes(two)
    monkeypatch.setenv(launcher.OWN, "/somewhere")
    assert not must_start_processes(two)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name in ("SLURM_STEP_ID", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", launcher.OWN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    eight = {"devices": 8, "num_nodes": 1, "accelerator": "auto"}
    with pytest.raises(UserError, match="there are 4 GPUs here"):
        must_start_processes(eight)
    assert must_start_processes({**eight, "accelerator": "cpu"}) and must_start_processes({**eight, "devices": -1})


def train_losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(tiny, forked_processes, tmp_path):
    every_step = "trainer.log_every_n_steps=1"
    alone = train(tiny(f"paths.runs={tmp_path}/alone", "callbacks.monitor=val/mse", "checkpoint=best", every_step))
    extras = "logger=tensorboard", "+callbacks.pictures.all._target_=et.inpainting.pictures.Pictures"
    pair = train(tiny(*PAIR, "callbacks.monitor=val/mse", "checkpoint=best", every_step, *extras))
    assert pair.record["run_id"] == alone.record["run_id"]
    assert pair.record["steps"] == alone.record["steps"] and pair.record["device"].startswith("2 x cpu")
    for name, value in weights(alone.folder).items():
        assert torch.allclose(value, weights(pair.folder)[name], rtol=1e-4, atol=1e-6), name
    for name, value in alone.record["metrics"].items():
        assert pair.record["metrics"][name] == pytest.approx(value, rel=1e-5), name
    assert pair.record["dataset"] == alone.record["dataset"]
    lines = [len((run.folder / "metrics.csv").read_text().splitlines()) for run in (alone, pair)]
    assert lines[0] == lines[1]
    losses = [train_losses(run.folder) for run in (alone, pair)]
    assert losses[0] and losses[1] == pytest.approx(losses[0], rel=1e-4), "the mean over the processes is recorded"
    writers = {path.name.split(".")[-2] for path in (pair.folder / "tensorboard").glob("events.*")}
    assert len(writers) == 1, "event files carry the number of the process that wrote them"
    assert list((pair.folder / "pictures").glob("photo_*.png")), "a process has only a share of their windows to score"
    assert len(list(tmp_path.rglob("result.json"))) == 2
    assert train(tiny(*PAIR, "callbacks.monitor=val/mse", "checkpoint=best")).skipped


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes_on_one(tiny, forked_processes, tmp_path, monkeypatch):
    whole = train(tiny(f"paths.runs={tmp_path}/whole", "trainer.max_epochs=6"))
    started = []
    original = launcher.start_process
    monkeypatch.setattr(launcher, "start_process", lambda *args: started.append(original(*args)) or started[-1])
    monkeypatch.setattr(launcher, "GRACE", 0.5)
    folder = tmp_path / "runs" / "demo_inpainting" / whole.record["run_id"]

    def kill_one():
        while not (folder / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.01)
        started[1].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(UserError, match=r"process 1 of 2 was killed by SIGKILL"):
        train(tiny(*PAIR, "trainer.max_epochs=6"))
    killer.join()
    assert all(process.poll() is not None for process in started)
    resumed = train(tiny("trainer.max_epochs=6"))
    assert resumed.record["steps"] == whole.record["steps"]
    for name, value in weights(whole.folder).items():
        assert torch.allclose(value, weights(resumed.folder)[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
def test_an_error_in_a_process_reaches_the_caller_and_a_held_folder_is_told_of(tiny, tmp_path):
    import fcntl

    from et.runs.identity import resolve
    from et.runs.record import run_id

    cfg = tiny(*PAIR)
    folder = tmp_path / "runs" / "demo_inpainting" / run_id(resolve(cfg))
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is running"):
            train(cfg)


def test_what_exit_statuses_mean(tmp_path):
    with pytest.raises(Interrupted) as stopped:
        raise_failure(tmp_path, [75, 75], None)
    assert stopped.value.code == Interrupted.RESUMABLE
    with pytest.raises(Interrupted) as stopped:
        raise_failure(tmp_path, [130, 130], signal.SIGINT)
    assert stopped.value.code == 130
    with pytest.raises(UserError, match="process 1 of 2 was killed by SIGKILL"):
        raise_failure(tmp_path, [0, -9], None)
    with pytest.raises(UserError, match="process 0 of 2 was killed by signal 40"):
        raise_failure(tmp_path, [-40, 0], None)
    with pytest.raises(UserError, match="process 1 of 2 ended with status 3"):
        raise_failure(tmp_path, [None, 3], None)


def test_a_killed_process_is_named_and_not_what_its_peers_say_of_it(tmp_path):
    peer = {"user": False, "message": "process 0: RuntimeError: gloo: Connection closed by peer"}
    (tmp_path / "failure.0.json").write_text(json.dumps(peer))
    with pytest.raises(UserError, match="process 1 of 2 was killed by SIGSEGV"):
        raise_failure(tmp_path, [1, -11], None)
    with pytest.raises(Interrupted) as stopped:  # told to stop before it could save: SIGTERM killed it
        raise_failure(tmp_path, [1, -15], signal.SIGTERM)
    assert stopped.value.code == 143
    with pytest.raises(RuntimeError, match="gloo"):
        raise_failure(tmp_path, [1, 0], None)


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(read, 0)
        os.close(write)
        launched.end_with_parent()
    os.close(read)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(write)
    assert os.waitpid(child, 0)[1] != 0


def test_batch_norm_over_processes_on_the_cpu_is_refused(config):
    if torch.cuda.is_available():
        pytest.skip("GPUs share batch norms")
    from et.training.trainer import distributed_options

    cfg = config(*TINY, *PAIR)
    with pytest.raises(UserError, match="batch norm over several processes"):
        distributed_options(cfg, torch.nn.Sequential(torch.nn.BatchNorm1d(3)))
