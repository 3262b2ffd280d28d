"""What a run survives: kill -9, a full disk, a damaged or foreign checkpoint, NaN, a dead loader process."""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch.utils.data import get_worker_info

from et.inpainting.data import EvaluationImages, TrainingImages
from et.runs.identity import resolve
from et.runs.record import read_result, run_id
from et.training.evaluation import evaluate
from et.training.run import train
from et.utils.errors import UserError, exit_on_user_error
from tests import fault_runs
from tests.configs import TINY
from tests.runs import Stop, assert_same_run, stop_in, weights


@pytest.mark.slow
def test_kill_9_ten_times_at_random_moments(tmp_path, monkeypatch):
    """A run is killed at any moment of its life and started again until it ends, as an uninterrupted one does.

    Every other life is killed soon after its first checkpoint, so that a slow machine resumes runs too.
    A fast machine ends a run after a few kills; then another one begins, until there were ten.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context, moments = fault_runs.context(), random.Random(0)
    settings = (
        *TINY, "trainer.max_epochs=12", "trainer.check_val_every_n_epoch=4", "data.source.crops_per_epoch=16",
        "+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1",
    )  # fmt: skip

    def last_written(runs):
        with contextlib.suppress(FileNotFoundError):  # where last.ckpt is just being put in its place
            return max((path.stat().st_mtime_ns for path in runs.rglob("last.ckpt")), default=None)

    def life(runs, seconds=None, *more, from_checkpoint=False):
        process = context.Process(target=fault_runs.run, args=((*settings, f"paths.runs={runs}", *more),))
        before = last_written(runs)
        process.start()
        while from_checkpoint and process.exitcode is None and last_written(runs) in (before, None):
            time.sleep(0.01)
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        return process.exitcode

    # The server imports everything for its first process.
    assert life(tmp_path / "warm_up", None, "trainer.max_epochs=1") == 0
    started = time.monotonic()
    assert life(tmp_path / "whole") == 0
    longest = time.monotonic() - started
    (whole,) = (tmp_path / "whole").glob("*/*")
    kills, resumable, number, lives = 0, 0, 0, 0
    while kills < 10:
        number += 1
        folder = tmp_path / str(number) / "demo_inpainting" / whole.name
        while read_result(folder) is None:
            lives += 1
            soon = lives % 2 == 0
            seconds = moments.uniform(0, longest / 4 if soon else longest) if kills < 10 else None
            code = life(tmp_path / str(number), seconds, from_checkpoint=soon)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            resumable += code != 0 and any(folder.glob("checkpoints/*.ckpt"))
        assert read_result(folder)["metrics"] == read_result(whole)["metrics"]
        assert read_result(folder)["steps"] == 24
        for name, value in weights(whole).items():
            assert torch.equal(value, weights(folder)[name]), name
    assert resumable >= 2, "hardly a life was long enough for a checkpoint"


def test_a_checkpoint_of_another_configuration_is_not_taken_up(tiny, whole_run, tmp_path, monkeypatch, capsys):
    whole = whole_run(*TINY)
    other = train(tiny(f"paths.runs={tmp_path}/other", "model.dim=8", "trainer.max_epochs=1"))
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_in(patched, 2)
        train(tiny())
    folder = tmp_path / "runs" / "demo_inpainting" / whole.record["run_id"] / "checkpoints"
    for name in ("last.ckpt", "last.ckpt.sha256"):
        (folder / name).write_bytes((other.folder / "checkpoints" / name).read_bytes())
    resumed = train(tiny())
    printed = capsys.readouterr().out
    assert f"last.ckpt belongs to another configuration (run {other.record['run_id']})" in printed
    assert_same_run(whole, resumed)


def test_nothing_but_damaged_checkpoints_starts_from_the_beginning(tiny, whole_run, tmp_path, monkeypatch, capsys):
    whole = whole_run(*TINY)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_in(patched, 2)
        train(tiny())
    folder = tmp_path / "runs" / "demo_inpainting" / whole.record["run_id"] / "checkpoints"
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / name).write_bytes((folder / name).read_bytes()[:500])
    resumed = train(tiny())
    assert capsys.readouterr().out.count("does not load") == 2
    assert_same_run(whole, resumed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB of its own and a function that mounts it with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(disk)], capture_output=True, text=True)

    done = mount("-t", "tmpfs", "-o", "size=3m", "tmpfs") if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip("mounting a file system needs root" if done is None else done.stderr.strip())
    yield disk, lambda options: mount("-o", f"remount,{options}")
    subprocess.run(["umount", "--lazy", str(disk)], check=False)


def test_a_disk_that_is_full_and_then_is_not(tiny, tmp_path, small_disk):
    disk, remount = small_disk
    whole = train(tiny(f"paths.runs={tmp_path}/whole", "model.num_memories=2000"))
    cfg = tiny(f"paths.runs={disk}", "model.num_memories=2000")
    with pytest.raises(UserError, match=r"the disk is full\. The checkpoint before it is untouched"):
        train(cfg)
    checkpoints = disk / "demo_inpainting" / whole.record["run_id"] / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    assert remount("size=50m").returncode == 0
    assert_same_run(whole, train(cfg))


@pytest.mark.parametrize("written", ("result.json", "metrics.csv", "evaluation.json", "pictures"))
def test_a_disk_that_is_full_elsewhere_is_a_sentence(tiny, whole_run, tmp_path, monkeypatch, capsys, written):
    """Whatever is being written, a person reads what and why, and the same command ends well once there is room."""
    pictures = ("+callbacks.pictures.completions._target_=et.inpainting.pictures.Pictures", "trainer.max_epochs=1")
    cfg, whole, failing = tiny(*pictures), whole_run(*TINY, *pictures), {"on": True}
    shutil.copytree(whole.folder.parents[1], tmp_path / "runs")
    folder = tmp_path / "runs" / whole.folder.parent.name / whole.folder.name

    def refuse(path):
        if failing["on"] and written in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    real_open, real_savefig = Path.open, Figure.savefig

    def opened(self, mode="r", *arguments, **more):
        # As write_atomically and replacing name what they write: .result.PID.json
        if "w" in mode:
            refuse(self.name.replace(f".{os.getpid()}", "").lstrip("."))
        return real_open(self, mode, *arguments, **more)

    def saved(self, path, *arguments, **more):
        refuse(path)
        return real_savefig(self, path, *arguments, **more)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Figure, "savefig", saved)
    if written == "evaluation.json":
        options = OmegaConf.create({"run": str(folder), "checkpoint": None, "output": None, "images": None,
                                    "mask_seeds": None, "device": "cpu", "progress": False})  # fmt: skip
        work = lambda: evaluate(options)  # noqa: E731
    else:
        cfg.force = True
        work = lambda: train(cfg)  # noqa: E731
    with pytest.raises(SystemExit):
        exit_on_user_error(work)
    told = capsys.readouterr().err
    assert told.startswith("error: cannot write") and "the disk is full" in told and written in told
    failing["on"] = False
    cfg.force = False
    assert train(cfg).record["metrics"] == whole.record["metrics"]


def test_a_file_system_that_is_read_only(tiny, small_disk):
    disk, remount = small_disk
    assert remount("ro").returncode == 0
    with pytest.raises(
        UserError, match=r"cannot write the run folder .* Read-only file system; set paths\.runs elsewhere"
    ):
        train(tiny(f"paths.runs={disk}"))


@pytest.mark.slow
def test_of_two_processes_on_one_run_one_wins_and_the_other_says_so(tiny, tmp_path):
    overrides = ("trainer.max_epochs=40", "+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1")
    cfg = tiny(*overrides)
    process = (*TINY, *overrides, f"paths.runs={tmp_path}/runs")
    winner = fault_runs.context().Process(target=fault_runs.run, args=(process,))
    winner.start()
    folder = tmp_path / "runs" / "demo_inpainting" / run_id(resolve(cfg))
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert winner.exitcode is None
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process is running"):
        train(cfg)
    winner.join()
    assert winner.exitcode == 0 and read_result(folder)["epochs"] == 40


@pytest.mark.parametrize("epoch", [0, 1])
def test_nan_in_the_data_stops_before_it_reaches_the_weights(tiny, monkeypatch, tmp_path, epoch):
    original = TrainingImages.__getitem__

    def item(self, key):
        found = original(self, key)
        if key[0] == epoch:
            found["image"][0, 3, 3] = float("nan")
        return found

    monkeypatch.setattr(TrainingImages, "__getitem__", item)
    with pytest.raises(UserError, match=rf"loss is nan at step {3 * epoch} \(epoch {epoch}\).*look for NaN"):
        train(tiny())
    if epoch == 0:
        assert not any((tmp_path / "runs" / "demo_inpainting").iterdir()), "there is nothing to resume from"
        return
    (folder,) = (tmp_path / "runs" / "demo_inpainting").iterdir()
    assert all(torch.isfinite(value).all() for value in weights(folder).values())


def test_a_loader_process_that_is_killed(tiny, whole_run, monkeypatch):
    whole = whole_run(*TINY)
    original = TrainingImages.__getitem__

    def item(self, key):
        if key[0] == 2 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, key)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingImages, "__getitem__", item)
        with pytest.raises(UserError, match="a process of the data loader died at step"):
            train(tiny("data.num_workers=2"))
    assert_same_run(whole, train(tiny("data.num_workers=2")))


def test_a_loader_process_that_is_killed_while_a_run_is_tested(tiny, monkeypatch):
    original = EvaluationImages.__getitem__

    def item(self, key):
        if self.mask_seeds == 2 and get_worker_info() is not None:  # validation has one mask an image
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, key)

    cfg = tiny("data.num_workers=1", "data.mask_seeds=2", "trainer.max_epochs=1")
    with monkeypatch.context() as patched:
        patched.setattr(EvaluationImages, "__getitem__", item)
        with pytest.raises(UserError, match="a process of the data loader died"):
            train(cfg)
    whole = train(cfg)
    options = OmegaConf.create({"run": str(whole.folder), "checkpoint": None, "output": None, "images": None,
                                "mask_seeds": None, "device": "cpu", "progress": False})  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(EvaluationImages, "__getitem__", item)
        with pytest.raises(UserError, match="a process of the data loader died"):
            evaluate(options)
    assert evaluate(options)["metrics"] == whole.record["metrics"]
