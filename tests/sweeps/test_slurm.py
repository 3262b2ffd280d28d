"""Sweeps on Slurm. Those marked `slurm` run on a real one, the private one of scripts/local_slurm.sh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from et.runs.record import read_result
from et.sweeps import cells as sweep_cells
from et.sweeps import slurm
from et.sweeps.slurm import Resources, active, ended_jobs, packs, read_queue, resources
from tests.configs import ROOT, TINY

CPU = {"devices": 1, "num_nodes": 1, "accelerator": "cpu"}


@pytest.mark.parametrize(
    ("trainer", "gpus_per_node", "needs"),
    (
        (CPU, None, Resources(1, 1, None)),
        ({**CPU, "devices": 2, "num_nodes": 3}, None, Resources(3, 2, None)),
        ({**CPU, "devices": 4, "accelerator": "gpu"}, None, Resources(1, 4, 4)),
        ({**CPU, "devices": -1, "accelerator": "gpu"}, 8, Resources(1, 8, 8)),
        ({**CPU, "devices": "0,1", "accelerator": "gpu"}, None, Resources(1, 2, 2)),
        ({**CPU, "devices": [1], "accelerator": "auto"}, 2, Resources(1, 1, 1)),
    ),
)
def test_a_job_has_a_task_and_a_gpu_for_every_device(trainer, gpus_per_node, needs):
    assert resources(trainer, gpus_per_node) == needs


def test_what_the_queue_says():
    states = read_queue("12_0|13|RUNNING\n12_1|14|COMPLETED\n15|15|PENDING\n16|16|PREEMPTED\n")
    assert [active(job, states) for job in ("12_0", "12_1", "15", "16", "99")] == [True, False, True, True, False]
    assert active("12_0", None) is None
    assert ended_jobs(["12_0", "12_1", "99"], states) == {"12_1": "COMPLETED", "99": "gone"}
    assert ended_jobs(["12_0"], None) == {}, "a controller that does not answer ends nothing"


def test_cells_are_packed_in_order():
    assert packs([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    with pytest.raises(ValueError, match="at least 1"):
        packs([1], 0)


def test_a_submitted_cell_is_in_the_queue_until_its_job_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("ET_RUNS_DIR", str(tmp_path))
    overrides = ["experiment=demo_inpainting", "seed=0"]
    slurm.note_job(sweep_cells.inspect(overrides).folder, "7_2")
    assert sweep_cells.inspect(overrides, {"7_2": "PENDING"}).state == "queued"
    assert sweep_cells.inspect(overrides, {"7_2": "FAILED"}).state == "open"
    assert sweep_cells.needed([sweep_cells.inspect(overrides, {"7_2": "RUNNING"})]) == {}


def test_the_launcher_has_the_configuration_of_submitits(config):
    """Every key of conf/hydra/launcher/slurm.yaml is one that sbatch's script is made from."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    import yaml
    from submitit.slurm.slurm import _get_default_parameters

    keys = set(yaml.safe_load((ROOT / "conf/hydra/launcher/slurm.yaml").read_text()))
    ours = {"_target_", "submitit_folder", "name", "cells_per_job", "timeout_min", "max_num_timeout", "mem_gb"}
    assert not keys - ours - set(_get_default_parameters())


# From here on: a real Slurm.


@pytest.fixture
def local_slurm(monkeypatch):
    """The environment of the private Slurm; it, and no other, is what these tests submit to."""
    folder = Path(os.environ.get("LOCAL_SLURM", "/tmp/et-slurm"))
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    if not (folder / "slurm.conf").exists():
        pytest.skip("needs a private Slurm: scripts/local_slurm.sh up (root, Debian's packages)")
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    if slurm.queue() is None:
        pytest.skip(f"the Slurm in {folder} does not answer: scripts/local_slurm.sh down, then up")
    # Loopback only: this machine may have no other name or interface that its own processes can meet at.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield folder
    subprocess.run(["scancel", "--me"], check=False)  # SLURM_CONF is still the private one's


SWEEP = ("sweep=table16", "hydra/launcher=slurm", *TINY, "callbacks.progress=false")


def jobs_of(runs: Path) -> dict[str, str]:
    """The job that each experiment and seed was given to."""
    return {str(path.parent): slurm.noted_job(path.parent) for path in runs.glob("*/*/slurm.json")}


def processes_of(job: str) -> list[int]:
    """The tasks of a job that srun started on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            settings = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"submitit.core._submit" in words and b"srun" not in words[0] and f"SLURM_JOB_ID={job}".encode() in settings:
            found.append(int(folder.name))
    return found


@pytest.mark.slurm
@pytest.mark.slow
def test_four_cells_one_of_them_on_two_tasks(local_slurm, run_sweep, tmp_path):
    """Three cells of one process, packed two to a job, and one of two processes."""
    arguments = (
        *SWEEP, "experiment=demo_inpainting,demo_inpainting_ddp", "seed=0,1,2", "hydra.launcher.cells_per_job=2",
        "sweep.skip=[{experiment:demo_inpainting_ddp,seed:'[12]'}]",
    )  # fmt: skip
    status, printed = run_sweep(*arguments)
    assert (status, "4 finished" in printed) == (0, True), printed
    records = [read_result(path.parent) for path in (tmp_path / "runs").glob("*/*/result.json")]
    assert sorted((record["experiment"], record["seed"]) for record in records) == [
        ("demo_inpainting", 0), ("demo_inpainting", 1), ("demo_inpainting", 2), ("demo_inpainting_ddp", 0),
    ]  # fmt: skip
    assert sorted(record["device"].startswith("2 x") for record in records) == [False, False, False, True]
    assert len(set(jobs_of(tmp_path / "runs").values())) == 3, "two packs and the cell of two tasks"
    alone, pair = (
        next(r for r in records if (r["experiment"], r["seed"]) == (name, 0))
        for name in ("demo_inpainting", "demo_inpainting_ddp")
    )
    for name, value in alone["metrics"].items():
        assert pair["metrics"][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill -9", "scancel"])
def test_a_killed_job_is_reported_and_the_next_submission_resumes_it(local_slurm, run_sweep, tmp_path, how):
    """kill -9 of the job's processes, or scancel, once there is a checkpoint."""
    runs = tmp_path / "runs"
    arguments = (*SWEEP, "seed=0", "trainer.max_epochs=30")
    seen: dict[str, int] = {}

    def kill() -> None:
        deadline = time.monotonic() + 300
        while not (found := list(runs.rglob("previous.ckpt"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        job = slurm.noted_job(found[0].parents[1])
        if how == "scancel":
            subprocess.run(["scancel", job], check=True)
        for process in processes_of(job) if how == "kill -9" else ():
            os.kill(process, signal.SIGKILL)
        seen[job] = len(found)

    killer = threading.Thread(target=kill)
    killer.start()
    status, printed = run_sweep(*arguments)
    killer.join()
    (job,) = seen
    assert status == 1
    assert f"1 x UserError: Slurm job {job} ended (" in printed and "without a result; its log is" in printed
    (folder,) = runs.glob("demo_inpainting/*")
    assert read_result(folder) is None
    assert any(folder.glob("checkpoints/*.ckpt")), "last.ckpt, or previous.ckpt where the kill came between the two"

    status, printed = run_sweep(*arguments)
    assert status == 0 and "1 finished" in printed, printed
    assert read_result(folder)["epochs"] == 30
    steps = [line.split(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    assert len(steps) == len(set(steps)), "no step is there twice"
    assert slurm.noted_job(folder) != job


@pytest.mark.slurm
@pytest.mark.slow
def test_a_job_reaches_its_time_limit_goes_back_to_the_queue_and_finishes(
    local_slurm, run_sweep, tmp_path, monkeypatch
):
    """Detached, with a limit of a minute: the run takes longer, so it has to be resumed, in the same folder."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/of/the/submitting/process")  # in which wandb may have run before
    runs = tmp_path / "runs"
    arguments = (
        *SWEEP, "seed=0", "sweep.detach=true", "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10",
        "data.source.crops_per_epoch=1600", "trainer.max_epochs=5", "logger=wandb",
        "+callbacks.pictures.slow={_target_: tests.runs.Sleepy, seconds: 0.07}",  # 70 s, however fast the machine is
    )  # fmt: skip
    status, printed = run_sweep(*arguments)
    assert status == 0 and "1 in Slurm's queue" in printed, printed
    (folder,) = runs.glob("demo_inpainting/*")
    job = slurm.noted_job(folder)
    status, printed = run_sweep(*arguments)
    assert status == 0 and slurm.noted_job(folder) == job, "what is in the queue is not submitted again"
    deadline = time.monotonic() + 540
    while active(job, slurm.queue()) is not False and time.monotonic() < deadline:
        time.sleep(1)
    log = next((runs / "sweeps/table16/slurm").rglob("*_0_log.out")).read_text()
    record = read_result(folder)
    assert record is not None, log
    assert record["epochs"] == 5 and record["steps"] == 1000
    assert "Requeued job" in log, log
    lives = list((folder / "wandb").glob("offline-run-*"))
    assert len(lives) >= 2 and {life.name.rsplit("-", 1)[1] for life in lives} == {record["run_id"]}
    status, printed = run_sweep(*arguments)
    assert status == 0 and "1 finished" in printed


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize("script", ["train", "sweep"])
def test_plain_sbatch_goes_back_to_the_queue_when_it_is_warned(local_slurm, tmp_path, monkeypatch, script):
    """A run on two tasks, or a sweep's two cells on one, and the signal that Slurm sends before the time limit."""
    monkeypatch.setenv("ET_PYTHON", sys.executable)
    one = ["experiment=demo_inpainting_ddp"], ["--ntasks-per-node=2"]
    several = ["sweep=table16", "experiment=demo_inpainting", "protocol=held_out", "seed=0,1"], []
    cells, tasks = one if script == "train" else several
    settings = [*TINY, *cells, "trainer.max_epochs=150", f"paths.runs={tmp_path}/runs"]
    command = ["sbatch", "--parsable", *tasks, f"--output={tmp_path}/log", f"scripts/slurm/{script}.sbatch"]
    job = subprocess.run([*command, *settings], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    deadline = time.monotonic() + 540
    while not list(tmp_path.rglob("previous.ckpt")) and active(job, slurm.queue()):
        time.sleep(0.1)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    while active(job, slurm.queue()) is not False and time.monotonic() < deadline:
        time.sleep(1)
    log = (tmp_path / "log").read_text()
    records = [read_result(path.parent) for path in (tmp_path / "runs").glob("demo*/*/result.json")]
    assert [record["epochs"] for record in records] == [150] * (1 if script == "train" else 2), log
    assert {record["device"].split("(")[0] for record in records} == {"2 x cpu " if script == "train" else "cpu "}, log
    assert log.count("time limit: job") == 1 and "interrupted by SIGUSR1, with its state saved" in log
